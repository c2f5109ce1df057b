"""The stages: what the loop relies on of each of them, and how the flags lay them out."""

import dataclasses

import jax
import pytest

from dpbert_jax.config import TINY, AdapterConfig, DPBertConfig, PlannerConfig
from dpbert_jax.policies.dpbert import init_params
from dpbert_jax.training import stage as module
from dpbert_jax.training.arguments import TrainArguments
from dpbert_jax.training.stage import ADAPTERS, DENSE, FINAL, JOINT, STAGES, plan_stages, stage_seed

CONFIG = DPBertConfig(dataclasses.replace(TINY, num_hidden_layers=3), PlannerConfig(2))


def planned(steps_per_epoch=10, **flags):
    start = {} if "teacher" in flags else {"model_name_or_path": "minilm"}
    args = TrainArguments(output_dir="run", **start, **flags)
    return [
        (stage, span.first_step, span.num_steps)
        for stage, span in plan_stages(steps_per_epoch, args)
    ]


def test_stages_follow_one_another():
    flags = {"num_train_epochs": 1.05, "num_planner_epochs": 2.0}
    assert planned(**flags) == [(DENSE, 0, 11), (JOINT, 11, 20), (FINAL, 31, 20)]
    assert planned(**flags, num_final_epochs=0.1)[-1] == (FINAL, 31, 1)


def test_a_teacher_takes_the_place_of_the_stage_that_would_make_it():
    assert planned(teacher="folder", num_final_epochs=0.0) == [(JOINT, 0, 30)]


def test_adapters_come_last_where_they_are_asked_for():
    assert [stage for stage, *_ in planned(adapter_rank=0)] == list(STAGES)
    assert planned(adapter_rank=4, num_adapter_epochs=2.0)[-1] == (ADAPTERS, 90, 20)


def test_a_stage_that_the_registry_gains_is_planned(monkeypatch):
    more = dataclasses.replace(FINAL, name="more", epochs=lambda args: 1.0)
    monkeypatch.setattr(module, "STAGES", (*STAGES, more))
    assert planned()[-1] == (more, 90, 10)


def test_names_and_seeds_tell_stages_apart():
    assert len({stage.name for stage in STAGES}) == len(STAGES)
    first = (DENSE, JOINT, FINAL)  # as they always were: the same seed, the same run
    assert [stage_seed(s, seed) for seed in range(5) for s in first] == list(range(15))
    assert len({stage_seed(stage, seed) for seed in range(5) for stage in STAGES}) == 20


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.name)
def test_what_is_frozen_is_there_and_thresholds_depend_on_nothing_else(stage):
    config = dataclasses.replace(CONFIG, adapters=AdapterConfig())
    parts = set(jax.eval_shape(lambda: init_params(config, 0)))
    frozen = stage.frozen(CONFIG)
    assert frozen <= parts and frozen < parts
    if stage.needs_calibration:
        assert frozen >= {"planner", "embeddings", "layer_0", "layer_1"}
