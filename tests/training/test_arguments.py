"""The flags of train.py: what can be no run is refused, by the flag's name."""

import pytest

from dpbert_jax.errors import UserError
from dpbert_jax.flags import parse
from dpbert_jax.training.arguments import POSITIVE, TrainArguments
from dpbert_jax.training.stage import STAGES


def arguments(**flags):
    return TrainArguments(**{"output_dir": "run", "model_name_or_path": "minilm", **flags})


def test_defaults_are_valid():
    assert arguments().report_to == ["tensorboard"]
    assert arguments().report_to is not arguments().report_to


@pytest.mark.parametrize("name", POSITIVE)
@pytest.mark.parametrize("value", [0, -1])
def test_what_must_be_above_zero(name, value):
    real = "float" in str(TrainArguments.__annotations__[name])
    with pytest.raises(UserError, match=rf"--{name} is .* above 0"):
        arguments(**{name: float(value) if real else value})


def test_the_backbone_may_learn_at_another_rate_from_its_teacher():
    def rates(**flags):
        made = arguments(learning_rate=4e-5, **flags)
        return [stage.learning_rate(made) for stage in STAGES]

    assert rates() == [4e-5] * 4
    assert rates(distillation_learning_rate=1e-5) == [4e-5, 1e-5, 1e-5, 1e-5]


@pytest.mark.parametrize("name", ["learning_rate", "num_train_epochs", "max_grad_norm"])
def test_nan_is_not_above_zero(name):
    with pytest.raises(UserError, match=f"--{name}"):
        arguments(**{name: float("nan")})


@pytest.mark.parametrize("value", [0.0, 1.0, -0.5, 1.5, float("nan")])
def test_min_budget_lies_between_0_and_1(value):
    with pytest.raises(UserError, match="--min_budget"):
        arguments(min_budget=value)


@pytest.mark.parametrize(
    "name, value", [("warmup_ratio", -0.1), ("warmup_ratio", 1.1), ("weight_decay", -0.1)]
)
def test_shares_and_decay(name, value):
    with pytest.raises(UserError, match=f"--{name}"):
        arguments(**{name: value})


@pytest.mark.parametrize("buckets", [[0], [24, 16], [16, 16], [129]])
def test_length_buckets_ascend_up_to_the_longest_row(buckets):
    with pytest.raises(UserError, match=r"--length_buckets .* must ascend, from 1 to .*128"):
        arguments(length_buckets=buckets)
    assert arguments(length_buckets=[16, 128]).length_buckets == [16, 128]


def test_a_negative_seed():
    with pytest.raises(UserError, match="--seed"):
        arguments(seed=-1)


@pytest.mark.parametrize("teacher, model", [(None, None), ("a", "b")])
def test_exactly_one_place_to_start_from(teacher, model):
    with pytest.raises(UserError, match=r"either --model_name_or_path .* or --teacher"):
        arguments(teacher=teacher, model_name_or_path=model)


def test_an_unknown_tracker_is_named():
    with pytest.raises(UserError, match=r"--report_to comet: .*tensorboard"):
        arguments(report_to=["none", "comet"])


@pytest.mark.parametrize("flags", [{"keep_best": 0.3}, {"keep_best": 0.6, "num_final_epochs": 0.0}])
def test_the_best_epoch_is_one_of_the_final_stage_at_a_trained_budget(flags):
    with pytest.raises(UserError, match="--keep_best"):
        arguments(**flags)
    assert arguments(keep_best=1.0).keep_best == 1.0


@pytest.mark.parametrize(
    "words, value",
    [([], "never"), (["--resume"], "always"), (["--resume", "auto"], "auto")],
)
def test_resume_is_a_switch_or_auto(words, value):
    given = ["--output_dir", "run", "--model_name_or_path", "minilm", *words]
    assert parse(TrainArguments, None, [*given, "--seed", "3"]).resume == value
