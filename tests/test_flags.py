"""The flags of all commands: one name and one form for one thing, whichever command it is."""

import dataclasses
import importlib
import types
import typing

import pytest

from dpbert_jax import cli
from dpbert_jax.errors import UserError
from dpbert_jax.flags import MODEL, RENAMED, parse

# Commands whose subject is no model.
OF_OTHERS = {"seeds": "--sweep_dirs", "load-test": "--url"}  # what stands first there


class Captured(Exception):
    """The dataclass that a command asks its flags into."""


def arguments_of(verb):
    """The arguments dataclass of a verb, caught where its main function parses the flags."""
    module = importlib.import_module(f"dpbert_jax.{cli.VERBS[verb].module}")
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Captured) as captured:

        def catch(arguments, *rest, **more):
            raise Captured(arguments)

        patch.setattr(module, "parse", catch)
        module.main()
    return captured.value.args[0]


@pytest.fixture(scope="module")
def arguments():
    """The arguments dataclass of every verb."""
    return {verb: arguments_of(verb) for verb in cli.VERBS}


def form(annotation):
    """A flag's type, whether or not it may be left out."""
    if isinstance(annotation, types.UnionType):
        (annotation,) = set(typing.get_args(annotation)) - {type(None)}
    return annotation


def test_a_flag_of_one_name_has_one_type(arguments):
    seen = {}
    for verb, each in arguments.items():
        hints = typing.get_type_hints(each)
        for field in dataclasses.fields(each):
            seen.setdefault(field.name, {}).setdefault(form(hints[field.name]), []).append(verb)
    assert len(seen["model_name_or_path"]) == 1 and len(seen) > 50
    assert not {name: types for name, types in seen.items() if len(types) > 1}
    assert {"budget", "output_dir", "data_dir", "plan_rule"} <= set(seen)
    assert set(seen["budget"]) == {list[float]}


def test_old_names_are_gone_and_a_model_is_named_alike_everywhere(arguments):
    for verb, each in arguments.items():
        names = {field.name for field in dataclasses.fields(each)}
        assert not names & set(RENAMED), verb
        assert (MODEL in names) == (verb not in OF_OTHERS)
    taken = {field.name for each in arguments.values() for field in dataclasses.fields(each)}
    assert {new for new, _ in RENAMED.values()} <= taken


def test_lists_are_numbers_and_words_of_their_own_never_joined_by_commas(arguments):
    for verb, each in arguments.items():
        for field in dataclasses.fields(each):
            default = field.default
            assert not (isinstance(default, str) and "," in default), (verb, field.name)
            assert "comma" not in field.metadata["help"], (verb, field.name)


NEEDED = {
    "train": ["--output_dir", "run"],
    "predict": ["--text", "a film"],
    "sweep": ["--output_dir", "out"],
    "export": ["--format", "onnx", "--output_dir", "out"],
    "stack": ["--output_dir", "out"],
    "compress": ["--output_dir", "out"],
    "load-test": ["--rate", "1", "--input_file", "rows.tsv"],
}


@pytest.mark.parametrize("verb", [verb for verb in cli.VERBS if verb not in OF_OTHERS])
def test_the_model_may_stand_first(verb, arguments):
    for named in ([], ["--model_name_or_path"]):
        assert (
            parse(arguments[verb], None, [*named, "runs/mrpc", *NEEDED.get(verb, [])])
        ).model_name_or_path == "runs/mrpc"


def test_budgets_are_numbers_after_one_flag(arguments):
    for verb in ("eval", "sweep"):
        flags = ["run", "--budget", "1.0", "0.6", *NEEDED.get(verb, [])]
        assert parse(arguments[verb], None, flags).budget == [1.0, 0.6]


@pytest.mark.parametrize(
    "verb, flags, words",
    [
        ("baselines", ["--run_dir", "run"], "There is no --run_dir: give the run first"),
        ("sweep", ["run", "--budgets", "0.5,1"], "--budget 1.0 0.6"),
        ("export", ["run", "--format", "onnx", "--output=out"], "give --output_dir"),
        ("sweep", ["--run-dir", "run"], "There is no --run_dir"),
        ("benchmark", ["--model", "bert-base"], "give the model first"),
        ("benchmark-training", ["--model", "minilm"], "--model_name_or_path"),
        ("benchmark", ["--data", "glue_data/SST-2"], "give --data_dir"),
    ],
)
def test_an_old_flag_is_answered_with_the_new_one(verb, flags, words, arguments):
    with pytest.raises(UserError, match=words):
        parse(arguments[verb], None, flags)


@pytest.mark.parametrize("verb", cli.VERBS)
@pytest.mark.parametrize("flag", ["--model_name", "--see", "--sweep_di"])
def test_a_flag_is_never_guessed_from_its_beginning(verb, flag, arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        subject = OF_OTHERS.get(verb, f"--{MODEL}")
        parse(arguments[verb], None, [subject, "run", *NEEDED.get(verb, []), flag, "1"])
    assert stop.value.code == 2
    assert f"unrecognized arguments: {flag}" in capsys.readouterr().err
