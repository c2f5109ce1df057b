"""The loop with a step that computes nothing: what is stepped, logged and saved, and when."""

from signal import SIGTERM

import numpy as np
import pytest
from scipy.stats import pearsonr

from dpbert_jax.data import TokenizedSplit
from dpbert_jax.errors import UserError
from dpbert_jax.training.feed import Feed
from dpbert_jax.training.loop import Hooks, Span, _summary, run_span
from dpbert_jax.training.step import TrainState
from dpbert_jax.training.transfer import as_they_are, partly_masked

ROWS, BATCH = 10, 4
SPLIT = TokenizedSplit(
    token_ids=np.repeat(np.arange(ROWS, dtype=np.int32), 3),
    type_ids=np.zeros(3 * ROWS, np.int8),
    offsets=np.arange(0, 3 * ROWS + 1, 3, dtype=np.int64),
    labels=np.zeros(ROWS, np.int32),
)


class Tokenizer:
    mask_token_id, all_special_ids = 50, [0]


class Recorder:
    """A tracker that remembers."""

    def __init__(self):
        self.lines = []

    def log_config(self, config):
        pass

    def log(self, step, values):
        self.lines.append((step, values))

    def close(self):
        pass


def run(
    num_steps=7,
    done=0,
    loss=float,
    grad_norm=float,
    transfer=None,
    own=None,
    step=None,
    **hooks,
):
    """Runs a stage that begins at global step 100; returns batches, logged lines and saves."""
    seen, saves, tracker = [], [], Recorder()

    def count(state, batch, signal):
        seen.append(batch)
        number = int(state.step) + 1
        rows = float(batch["weights"].sum()) or 1.0
        sums = {"loss": loss(number), "rows": rows, "layers": 2 * rows, "correct": rows / 2}
        sums |= {"grad_norm": grad_norm(number), "signal": signal}
        return TrainState({}, (), np.int32(number)), sums

    hooks = {"save": lambda step, state: saves.append((step, int(state.step))), **hooks}
    feed = Feed(
        SPLIT,
        np.arange(len(SPLIT)) + 1000,
        batch_size=BATCH,
        max_seq_length=16,
        pad_token_id=0,
        seed=1,
        transfer=transfer,
        own=own,
    )
    state = run_span(
        Span("dense", 100, num_steps),
        step or count,
        TrainState({}, (), np.int32(done)),
        feed,
        Hooks(tracker, logging_steps=2, save_steps=3, **hooks),
    )
    assert int(state.step) == num_steps
    return seen, tracker.lines, saves


def test_lines_and_saves_follow_the_global_step_and_the_end():
    _, lines, saves = run()
    assert [step for step, _ in lines] == [102, 104, 106, 107]
    assert [values["loss"] for _, values in lines] == [1.5, 3.5, 5.5, 7.0]  # means since the last
    assert [values["epoch"] for _, values in lines] == [0, 1, 1, 2]
    assert all(values["score"] == 0.5 and values["mean_layers"] == 2 for _, values in lines)
    assert saves == [(2, 2), (5, 5), (7, 7)]  # global steps 102 and 105, and the end


def test_an_epoch_shows_every_row_once_and_each_epoch_another_order():
    seen, _, _ = run(num_steps=6)
    epochs = [np.concatenate([b["indices"] for b in part]) for part in (seen[:3], seen[3:])]
    for order in epochs:
        assert sorted(order[order >= 0]) == list(range(ROWS))
    assert (epochs[0] != epochs[1]).any()


@pytest.mark.parametrize("done", range(8))
def test_going_on_shows_the_batches_that_were_left(done):
    whole, rest = run()[0], run(done=done)[0]
    assert len(rest) == 7 - done
    for batch, wanted in zip(rest, whole[done:], strict=True):
        for name, value in wanted.items():
            np.testing.assert_array_equal(batch[name], value)


def test_each_row_meets_its_own_teacher_logits():
    teacher = np.arange(2.0 * ROWS).reshape(ROWS, 2)
    for batch in run(transfer=as_they_are(SPLIT, teacher))[0]:
        real = batch["weights"] > 0
        np.testing.assert_array_equal(
            batch["teacher_logits"][real], teacher[batch["input_ids"][real, 0]]
        )
        assert "labelled" not in batch


def masking(share=0.5, seed=3):
    """Of texts whose dense model's answer is the sum of their tokens."""

    def ask(split):
        return np.add.reduceat(split.token_ids, split.offsets[:-1])[:, None].astype(np.float32)

    return partly_masked(SPLIT, ask(SPLIT), share, ask=ask, tokenizer=Tokenizer, seed=seed)


def test_a_masked_row_meets_what_the_teacher_says_of_it_and_learns_from_nothing_else():
    seen = run(num_steps=6, transfer=masking())[0]
    rows = [
        (int(label), bool((ids == Tokenizer.mask_token_id).any()), float(taught[0] - ids.sum()))
        for batch in seen
        for ids, taught, label, weight in zip(
            *(batch[name] for name in ("input_ids", "teacher_logits", "labelled", "weights")),
            strict=True,
        )
        if weight
    ]
    assert all(off == 0 for _, _, off in rows)
    assert any(masked for _, masked, _ in rows) and any(label for label, _, _ in rows)
    assert not any(label and masked for label, masked, _ in rows)


def test_masked_rows_are_others_in_each_epoch_and_the_same_when_a_run_goes_on():
    whole, rest = run(transfer=masking())[0], run(transfer=masking(), done=4)[0]
    for batch, wanted in zip(rest, whole[4:], strict=True):
        np.testing.assert_equal(batch, wanted)
    first, second = (masking()(epoch).split.token_ids for epoch in (0, 1))
    assert (first != second).any()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("which", ["loss", "grad_norm"])
def test_what_is_not_finite_stops_the_run_and_names_the_training_rows(which, bad):
    named = ", ".join(str(1000 + row) for row in run()[0][4]["indices"])
    with pytest.raises(UserError, match=rf"stage dense, step 5 of 7 \(epoch 1\).* rows {named} "):
        run(**{which: lambda step: bad if step == 5 else 1.0})


def test_the_running_correlation_is_pearsons():
    x, y = np.random.default_rng(0).standard_normal((2, 30))
    window = [
        {
            "loss": 1.0,
            "grad_norm": 1.0,
            "rows": 10.0,
            "layers": 30.0,
            "x": a.sum(),
            "y": b.sum(),
            "xx": (a * a).sum(),
            "yy": (b * b).sum(),
            "xy": (a * b).sum(),
        }
        for a, b in zip(x.reshape(3, 10), y.reshape(3, 10), strict=True)
    ]
    assert _summary(window)["score"] == pytest.approx(pearsonr(x, y)[0])


def test_a_signal_finishes_the_step_saves_and_ends_the_process(caplog):
    """Signals as other processes' sums tell them: this one got none itself."""
    saves = []

    def step(state, batch, signal):
        number = int(state.step) + 1
        sums = {"loss": 1.0, "rows": 4.0, "layers": 8.0, "correct": 2.0, "grad_norm": 1.0}
        told = float(SIGTERM) if number == 4 else float(signal)
        return TrainState({}, (), np.int32(number)), {**sums, "signal": told}

    with pytest.raises(SystemExit) as stop:
        run(step=step, save=lambda number, state: saves.append(number))
    assert stop.value.code == 143
    assert saves == [2, 4]  # by the schedule, and by the signal
    assert "Stopped by SIGTERM behind step 4 of 7 in stage dense" in caplog.text


def test_epochs_end_behind_their_last_batch_and_at_the_end():
    ends = []
    run(end_epoch=lambda number, state: ends.append((number, int(state.step))))
    assert ends == [(3, 3), (6, 6), (7, 7)]


def test_a_process_builds_its_own_positions_only():
    whole = run()[0]
    for part in ([0, 1], [2, 3]):
        for batch, wanted in zip(run(own=np.array(part))[0], whole, strict=True):
            for name, value in batch.items():
                np.testing.assert_array_equal(value, wanted[name][part])
