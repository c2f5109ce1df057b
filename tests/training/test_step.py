"""The step: one device or four, one micro-batch or two, once or again: the same numbers."""

import dataclasses
from functools import cache, partial

import jax
import numpy as np
import pytest

from dpbert_jax.config import TINY, AdapterConfig, Calibration, DPBertConfig, PlannerConfig
from dpbert_jax.policies.dpbert import DPBert, init_params
from dpbert_jax.programs import compiled_programs
from dpbert_jax.training.objective import threshold_grid
from dpbert_jax.training.optimizer import make_optimizer
from dpbert_jax.training.stage import ADAPTERS, DENSE, FINAL, JOINT, STAGES, loss_of
from dpbert_jax.training.step import (
    TrainStep,
    create_state,
    make_gradients,
    own_positions,
)

ROWS, STEPS = 8, 3
PLAIN = DPBertConfig(dataclasses.replace(TINY, num_hidden_layers=2))
PLANNED = DPBertConfig(
    PLAIN.encoder, PlannerConfig(), Calibration((0.4, 0.8, 1.0), (2.5, 1.5, -6.0))
)
ADAPTED = dataclasses.replace(
    PLANNED,
    encoder=dataclasses.replace(TINY, num_hidden_layers=3),
    adapters=AdapterConfig(2),
)
CONFIGS = {
    stage: ADAPTED if stage.needs_adapters else PLANNED if stage.needs_planner else PLAIN
    for stage in STAGES
}
each_stage = pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.name)


@cache
def step_and_start(stage, devices, accumulation):
    """Compiled once for all tests; dropout is on, as the preset has it."""
    config = CONFIGS[stage]
    params = jax.device_get(init_params(config, 0))
    optimizer = make_optimizer(
        params,
        frozen=stage.frozen(config),
        num_steps=STEPS,
        learning_rate=1e-3,
        planner_learning_rate=1e-2,
        adapter_learning_rate=1e-3,
        weight_decay=0.01,
        warmup_ratio=0.1,
        max_grad_norm=1.0,
    )
    step = TrainStep(
        partial(loss_of, stage, DPBert(config)),
        optimizer,
        num_steps=STEPS,
        accumulation=accumulation,
        seed=3,
        devices=jax.devices()[:devices],
    )
    step = partial(step, thresholds=threshold_grid(config))
    return step, jax.device_get(create_state(params, optimizer))


@pytest.fixture(scope="module")
def schedule(random_batch):
    """Global batches, the last of which is filled up with padding rows: whole shards of it."""
    random = np.random.default_rng(0)
    made = []
    for number, real in enumerate([8, 8, 5]):
        weights = (np.arange(ROWS) < real).astype(np.float32)
        made.append(
            {
                **random_batch(ROWS, seed=number),
                "labels": random.integers(0, 2, ROWS, np.int32),
                "teacher_logits": random.standard_normal((ROWS, 2), np.float32),
                "weights": weights,
                "indices": np.where(weights > 0, np.arange(ROWS), -1).astype(np.int32),
            }
        )
    return made


def run(stage, schedule, devices=1, accumulation=1):
    step, state = step_and_start(stage, devices, accumulation)
    if not stage.needs_teacher:
        schedule = [{k: v for k, v in b.items() if k != "teacher_logits"} for b in schedule]
    history = []
    for batch in schedule:
        state, sums = step(state, batch)
        history.append(sums)
    return history, jax.device_get(state)


def assert_identical(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)


@each_stage
def test_four_devices_compute_what_one_computes(stage, schedule):
    one, _ = run(stage, schedule)
    four, _ = run(stage, schedule, devices=4)
    for sums, wanted in zip(four, one, strict=True):
        assert sums == pytest.approx(wanted, abs=1e-5, rel=1e-5)
    assert [sums["rows"] for sums in one] == [8, 8, 5]


@pytest.mark.parametrize("stage", [DENSE, pytest.param(FINAL, marks=pytest.mark.slow)])
def test_two_micro_batches_are_one_batch(stage, schedule):
    whole, _ = run(stage, schedule)
    split, _ = run(stage, schedule, accumulation=2)
    for sums, wanted in zip(split, whole, strict=True):
        assert sums == pytest.approx(wanted, abs=1e-5, rel=1e-5)


@pytest.mark.slow
def test_joint_micro_batches_share_the_task_loss_and_each_has_its_own_penalty(schedule):
    """The penalty is of a micro-batch's mean cost; before the first update the rest agrees."""
    (whole, *_), _ = run(JOINT, schedule)
    (split, *rest), _ = run(JOINT, schedule, accumulation=2)
    for name in ("loss", "rows", "layers", "correct"):
        assert split[name] == pytest.approx(whole[name], abs=1e-5)
    assert all(np.isfinite(list(sums.values())).all() for sums in (split, *rest))


@each_stage
def test_the_same_run_twice_is_bitwise_the_same(stage, schedule):
    first, second = run(stage, schedule, devices=4), run(stage, schedule, devices=4)
    assert first[0] == second[0]
    assert_identical(first[1], second[1])


@each_stage
def test_padding_rows_change_nothing(stage, schedule):
    changed = []
    for batch in schedule:
        real = batch["weights"] > 0
        other = {key: value.copy() for key, value in batch.items()}
        other["input_ids"][~real] = 7
        other["labels"][~real] = 1
        other["teacher_logits"][~real] = 50.0
        changed.append(other)
    (history, state), (other_history, other_state) = run(stage, schedule), run(stage, changed)
    assert history == other_history
    assert_identical(state, other_state)


@each_stage
def test_every_part_moves_but_for_what_the_final_plans_depend_on(stage, schedule):
    before = step_and_start(stage, 1, 1)[1].params
    after = run(stage, schedule)[1].params
    frozen = {"planner", "embeddings", "layer_0"} if stage is FINAL else set()
    if stage is ADAPTERS:
        frozen = set(before) - {"adapters"}
    else:
        planner = set() if stage is DENSE else {"planner"}
        assert set(before) == {"embeddings", "layer_0", "layer_1", "head"} | planner
    for part in before:
        if part in frozen:
            assert_identical(before[part], after[part])
        elif part == "adapters":  # a layer that no plan of few layers ran has nothing to learn
            assert not np.array_equal(
                *(tree[part]["head"]["pooler"]["up"] for tree in (before, after))
            )
        else:
            jax.tree.map(
                lambda x, y: np.testing.assert_(not (x == y).all()),
                *(tree[part] for tree in (before, after)),
            )


def test_a_state_on_the_host_or_on_devices_is_the_same_state(schedule):
    """A resumed run starts from the host; the one that was not interrupted never left."""
    step, state = step_and_start(DENSE, 4, 1)
    batch = {k: v for k, v in schedule[0].items() if k != "teacher_logits"}
    from_host, sums = step(state, batch)
    from_devices, other_sums = step(jax.device_put(state), batch)
    assert sums == other_sums
    assert_identical(jax.device_get(from_host), jax.device_get(from_devices))
    assert int(from_host.step) == 1


def test_other_thresholds_are_no_other_program(schedule):
    """They are a run's own, found by its inputs: as constants, each run would compile anew."""
    step, state = step_and_start(FINAL, 1, 1)
    state, sums = step(state, schedule[0])
    everything = (np.array([0.4, 1.0], np.float32).repeat([2, 1]), np.full(3, -1e9, np.float32))
    with compiled_programs() as compiled:
        _, more = step(state, schedule[0], thresholds=everything)
    assert not [each for each in compiled if not each.is_operation]
    assert more["layers"] == ROWS * PLANNED.encoder.num_hidden_layers > sums["layers"]


@each_stage
def test_the_step_lowers_for_tpus_without_one(stage, schedule):
    """Four devices with a collective between them; compiling is what a TPU alone can do."""
    loss = partial(stage.loss, DPBert(CONFIGS[stage]))
    parallel = make_gradients(loss, 1, jax.devices()[:4])
    batch = {k: v for k, v in schedule[0].items() if k != "indices"}
    if not stage.needs_teacher:
        batch.pop("teacher_logits")
    batch["positions"] = np.arange(ROWS, dtype=np.int32)
    shards = {k: v.reshape(4, 1, ROWS // 4, *v.shape[1:]) for k, v in batch.items()}
    arguments = (init_params(CONFIGS[stage], 0), shards, np.zeros(4, np.float32))
    key, thresholds = jax.random.key_data(jax.random.key(0)), threshold_grid(CONFIGS[stage])
    arguments += (key, np.float32(0.5), thresholds)
    exported = jax.export.export(jax.jit(parallel), platforms=["tpu"])(*arguments)
    assert (exported.platforms, exported.nr_devices) == (("tpu",), 4)
    assert "all_reduce" in exported.mlir_module()


def test_positions_are_dealt_out_over_processes_within_each_micro_batch(monkeypatch):
    for processes in (1, 2, 4):
        monkeypatch.setattr(jax, "process_count", lambda processes=processes: processes)
        parts = []
        for number in range(processes):
            monkeypatch.setattr(jax, "process_index", lambda number=number: number)
            parts.append(own_positions(16, 2).reshape(2, -1))
        np.testing.assert_array_equal(np.concatenate(parts, axis=1), np.arange(16).reshape(2, 8))
