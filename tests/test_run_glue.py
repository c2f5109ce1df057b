"""Flags typed from memory of run_glue: taken where they change nothing, else answered."""

import dataclasses

import pytest

from dpbert_jax.errors import UserError
from dpbert_jax.evaluation.arguments import EvalArguments
from dpbert_jax.run_glue import BOTH, EVAL, TRAIN, without_run_glue
from dpbert_jax.training.arguments import TrainArguments

ARGUMENTS = {"train.py": TrainArguments, "eval.py": EvalArguments}


@pytest.mark.parametrize(
    "flags",
    [
        ["--do_train", "--do_eval"],
        ["--do_train", "True", "--do_eval", "true"],
        ["--do_train=True"],
        ["--do_eval", "False", "--do_train"],
    ],
)
def test_what_training_does_anyway_is_taken(flags):
    rest = ["--learning_rate", "3e-5", "--task_name", "mrpc"]
    assert without_run_glue([*rest[:2], *flags, *rest[2:]], "train.py") == rest


def test_scoring_alone_is_not_training():
    with pytest.raises(UserError, match=r"train\.py trains; eval\.py scores"):
        without_run_glue(["--do_eval"], "train.py")


@pytest.mark.parametrize("script", ARGUMENTS)
def test_every_other_flag_is_answered_in_a_sentence(script):
    for name, answer in (BOTH | (TRAIN if script == "train.py" else EVAL)).items():
        for flag in ([f"--{name}", "x"], [f"--{name}=x"]):
            with pytest.raises(UserError) as refusal:
                without_run_glue(["--seed", "1", *flag], script)
            assert str(refusal.value) == f"--{name} is run_glue's, not {script}'s: {answer}."


@pytest.mark.parametrize("script", ARGUMENTS)
def test_no_flag_of_ours_is_answered(script):
    ours = {field.name for field in dataclasses.fields(ARGUMENTS[script])}
    assert not ours & set(BOTH | (TRAIN if script == "train.py" else EVAL))
    argv = [f"--{name}" for name in ours]
    assert without_run_glue(argv, script) == argv
