"""The loop over the steps of a stage: batches in, numbers out, checkpoints between."""

import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from signal import Signals

import numpy as np
from tqdm import tqdm

from dpbert_jax.errors import UserError
from dpbert_jax.training.feed import Feed
from dpbert_jax.training.preemption import Preemption, exit_code
from dpbert_jax.training.step import Step, Sums, TrainState
from dpbert_jax.training.tracker import Tracker

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Span:
    """The steps that the loop takes, and what they are called."""

    name: str  # in the log and in messages
    first_step: int  # global step at which they begin
    num_steps: int


class Clock:
    """Where a stage's time goes besides computing."""

    def __init__(self) -> None:
        self.began = time.perf_counter()
        self.data = self.checkpoints = 0.0  # seconds

    def shares(self) -> dict[str, float]:
        total = max(time.perf_counter() - self.began, 1e-9)
        return {"data_wait": self.data / total, "checkpoint_wait": self.checkpoints / total}


@dataclass(frozen=True)
class Hooks:
    """What happens beside a stage's steps."""

    tracker: Tracker
    logging_steps: int
    save_steps: int
    save: Callable[[int, TrainState], None]  # (stage step, state), on global steps and at the end
    # After the last step of each epoch and of all, with (stage step, state).
    end_epoch: Callable[[int, TrainState], None] | None = None
    preemption: Preemption = field(default_factory=Preemption)  # where a signal to stop is noted


def run_span(span: Span, step: Step, state: TrainState, feed: Feed, hooks: Hooks) -> TrainState:
    """Runs the steps that the state has not done yet; every draw depends on (seed, step) only.

    Raises:
        UserError: the loss or its gradient is not finite; names the step and the rows.
        SystemExit: a process of this run was told to stop: its step is done, and saved.
    """
    done = int(state.step)
    bar = tqdm(total=span.num_steps, initial=done, desc=span.name, dynamic_ncols=True)
    window: list[Sums] = []
    began = time.perf_counter()
    clock = Clock()
    upcoming = feed.batches(done)
    with bar, hooks.preemption.deferred():
        while done < span.num_steps:
            asked = time.perf_counter()
            epoch, batch = next(upcoming)
            clock.data += time.perf_counter() - asked
            state, sums = step(state, batch, hooks.preemption.signal)
            signal = int(sums.pop("signal"))
            done += 1
            if not (math.isfinite(sums["loss"]) and math.isfinite(sums["grad_norm"])):
                _refuse_divergence(span, done, epoch, feed.rows_of(batch), sums)
            window.append(sums)
            values = _summary(window)
            rate = sum(s["rows"] for s in window) / (time.perf_counter() - began)
            values["examples_per_second"] = rate
            bar.set_postfix(_short(values), refresh=False)
            bar.update()
            global_step = span.first_step + done
            last = done == span.num_steps
            if last or global_step % hooks.logging_steps == 0:
                values |= clock.shares()
                hooks.tracker.log(global_step, {"phase": span.name, "epoch": epoch, **values})
                window, began = [], time.perf_counter()
            if hooks.end_epoch and (last or done % feed.steps_per_epoch == 0):
                hooks.end_epoch(done, state)
            if last or signal or global_step % hooks.save_steps == 0:
                asked = time.perf_counter()
                hooks.save(done, state)
                clock.checkpoints += time.perf_counter() - asked
            if signal:
                bar.close()  # what is said next begins a line of its own
                _stop(span, done, signal)
    waited = clock.shares()
    logger.info(
        "%s: %.2f %% of the time waiting for data, %.2f %% for checkpoints.",
        span.name,
        100 * waited["data_wait"],
        100 * waited["checkpoint_wait"],
    )
    return state


def _stop(span: Span, done: int, signal: int) -> None:
    logger.warning(
        "Stopped by %s behind step %d of %d in stage %s; it is saved: go on with --resume.",
        Signals(signal).name,
        done,
        span.num_steps,
        span.name,
    )
    raise SystemExit(exit_code(signal))


def _refuse_divergence(
    span: Span, step: int, epoch: int, rows: np.ndarray, sums: dict[str, float]
) -> None:
    shown = ", ".join(map(str, rows[:8])) + (", ..." if len(rows) > 8 else "")
    raise UserError(
        f"The loss is {sums['loss']} and its gradient's norm {sums['grad_norm']} in stage "
        f"{span.name}, step {step} of {span.num_steps} (epoch {epoch}), on the batch of training "
        f"rows {shown} (counted from 0). The run has stopped; its last checkpoint is from before. "
        "Lower --learning_rate or --planner_learning_rate, or look at those rows."
    )


def _summary(window: list[dict[str, float]]) -> dict[str, float]:
    """Means over the steps since the last line: loss, training score, layers a row.

    The score is the accuracy, or, where the sums are those of a regression, Pearson's correlation.
    """
    total = {key: math.fsum(sums[key] for sums in window) for key in window[0]}
    rows = total["rows"]
    values = {"loss": total["loss"] / len(window), "mean_layers": total["layers"] / rows}
    if "xy" in total:
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
