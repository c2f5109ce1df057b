"""The loop over one stage's steps: batches in, numbers out, checkpoints between."""

import itertools
import logging
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from signal import Signals

import numpy as np
from tqdm import tqdm

from dpbert_jax.data import Batch, TokenizedSplit, batches, num_batches
from dpbert_jax.errors import UserError
from dpbert_jax.training.objective import StageName
from dpbert_jax.training.preemption import Preemption, exit_code
from dpbert_jax.training.step import Step, Sums, TrainState
from dpbert_jax.training.tracker import Tracker

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class StagePlan:
    """How long a stage is and where it lies in the run."""

    name: StageName
    index: int
    first_step: int  # global step at which it begins
    num_steps: int


class Clock:
    """Where a stage's time goes besides computing."""

    def __init__(self) -> None:
        self.began = time.perf_counter()
        self.data = self.checkpoints = 0.0  # seconds

    def shares(self) -> dict[str, float]:
        total = max(time.perf_counter() - self.began, 1e-9)
        return {"data_wait": self.data / total, "checkpoint_wait": self.checkpoints / total}


def run_stage(
    plan: StagePlan,
    step: Step,
    state: TrainState,
    split: TokenizedSplit,
    teacher_logits: np.ndarray | None,
    *,
    row_numbers: np.ndarray,
    batch_size: int,
    max_seq_length: int,
    pad_token_id: int,
    seed: int,
    logging_steps: int,
    save_steps: int,
    tracker: Tracker,
    save: Callable[[int, TrainState], None],
    is_regression: bool,
    title: str | None = None,
    own: np.ndarray | None = None,
    preemption: Preemption | None = None,
    end_epoch: Callable[[int, TrainState], None] | None = None,
) -> TrainState:
    """Runs the steps that the state has not done yet; every draw depends on (seed, step) only.

    Args:
        row_numbers: where the split's rows stand in the training data; [N].
        batch_size: rows of the global batch.
        save: called with (stage step, state) every `save_steps` global steps and at the end.
        title: what the progress bar says; default: the stage's name.
        own: positions in the global batch that this process builds; default: all.
        preemption: where a signal to stop is noted.
        end_epoch: called with (stage step, state) behind the last step of each epoch and of all.

    Raises:
        UserError: the loss or its gradient is not finite; names the step and the rows.
        SystemExit: a process of this run was told to stop: its step is done, and saved.
    """
    preemption = preemption or Preemption()
    per_epoch = num_batches(len(split), batch_size)
    done = int(state.step)
    bar = tqdm(total=plan.num_steps, initial=done, desc=title or plan.name, dynamic_ncols=True)
    window: list[Sums] = []
    began = time.perf_counter()
    clock = Clock()

    def schedule() -> Iterator[tuple[int, Batch]]:
        first, start = divmod(done, per_epoch)
        for epoch in itertools.count(first):
            for batch in batches(
                split,
                batch_size,
                max_seq_length,
                seed=seed,
                epoch=epoch,
                start=start if epoch == first else 0,
                pad_token_id=pad_token_id,
                own=own,
            ):
                if teacher_logits is not None:
                    # Padding rows (index -1) get some row's logits; their weight is 0.
                    batch["teacher_logits"] = teacher_logits[batch["indices"]]
                yield epoch, batch

    upcoming = schedule()
    with bar, preemption.deferred():
        while done < plan.num_steps:
            asked = time.perf_counter()
            epoch, batch = next(upcoming)
            clock.data += time.perf_counter() - asked
            state, sums = step(state, batch, preemption.signal)
            signal = int(sums.pop("signal"))
            done += 1
            if not (math.isfinite(sums["loss"]) and math.isfinite(sums["grad_norm"])):
                rows = row_numbers[batch["indices"][batch["indices"] >= 0]]
                _refuse_divergence(plan, done, epoch, rows, sums)
            window.append(sums)
            values = _summary(window, is_regression)
            rate = sum(s["rows"] for s in window) / (time.perf_counter() - began)
            values["examples_per_second"] = rate
            bar.set_postfix(_short(values), refresh=False)
            bar.update()
            global_step = plan.first_step + done
            last = done == plan.num_steps
            if last or global_step % logging_steps == 0:
                values |= clock.shares()
                tracker.log(global_step, {"phase": plan.name, "epoch": epoch, **values})
                window, began = [], time.perf_counter()
            if end_epoch and (last or done % per_epoch == 0):
                end_epoch(done, state)
            if last or signal or global_step % save_steps == 0:
                asked = time.perf_counter()
                save(done, state)
                clock.checkpoints += time.perf_counter() - asked
            if signal:
                bar.close()  # what is said next begins a line of its own
                _stop(plan, done, signal)
    waited = clock.shares()
    logger.info(
        "%s: %.2f %% of the time waiting for data, %.2f %% for checkpoints.",
        title or plan.name,
        100 * waited["data_wait"],
        100 * waited["checkpoint_wait"],
    )
    return state


def _stop(plan: StagePlan, done: int, signal: int) -> None:
    logger.warning(
        "Stopped by %s behind step %d of %d in stage %s; it is saved: go on with --resume.",
        Signals(signal).name,
        done,
        plan.num_steps,
        plan.name,
    )
    raise SystemExit(exit_code(signal))


def _refuse_divergence(
    plan: StagePlan, step: int, epoch: int, rows: np.ndarray, sums: dict[str, float]
) -> None:
    shown = ", ".join(map(str, rows[:8])) + (", ..." if len(rows) > 8 else "")
    raise UserError(
        f"The loss is {sums['loss']} and its gradient's norm {sums['grad_norm']} in stage "
        f"{plan.name}, step {step} of {plan.num_steps} (epoch {epoch}), on the batch of training "
        f"rows {shown} (counted from 0). The run has stopped; its last checkpoint is from before. "
        "Lower --learning_rate or --planner_learning_rate, or look at those rows."
    )


def _summary(window: list[dict[str, float]], is_regression: bool) -> dict[str, float]:
    """Means over the steps since the last line: loss, training score, layers a row."""
    total = {key: math.fsum(sums[key] for sums in window) for key in window[0]}
    rows = total["rows"]
    values = {"loss": total["loss"] / len(window), "mean_layers": total["layers"] / rows}
    if is_regression:
        x, y = total["x"] / rows, total["y"] / rows
        spread = (total["xx"] / rows - x * x) * (total["yy"] / rows - y * y)
        values["score"] = (total["xy"] / rows - x * y) / math.sqrt(max(spread, 1e-12))
    else:
        values["score"] = total["correct"] / rows
    values["grad_norm"] = total["grad_norm"] / len(window)
    return values


def _short(values: dict[str, float]) -> dict[str, str]:
    return {
        "loss": f"{values['loss']:.3f}",
        "score": f"{values['score']:.3f}",
        "layers": f"{values['mean_layers']:.2f}",
        "ex/s": f"{values['examples_per_second']:.0f}",
    }
