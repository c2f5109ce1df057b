import numpy as np
import pytest

from dpbert_jax.data.tasks import GLUE_TASKS, Examples, canonical_name, custom_spec


def test_the_nine_tasks_of_glue():
    assert " ".join(GLUE_TASKS) == "cola mnli mrpc qnli qqp rte sst2 stsb wnli"
    assert GLUE_TASKS["rte"].labels == ("entailment", "not_entailment")
    assert GLUE_TASKS["wnli"].labels == ("not_entailment", "entailment")
    assert GLUE_TASKS["mnli"].num_labels == 3
    assert GLUE_TASKS["mnli"].validation_splits == (
        "validation_matched",
        "validation_mismatched",
    )
    assert [name for name, spec in GLUE_TASKS.items() if spec.is_regression] == ["stsb"]
    assert GLUE_TASKS["stsb"].num_labels == 1


def test_metrics_of_own_tasks_follow_from_the_labels():
    assert custom_spec(("text",), ("no", "yes")).metrics == ("accuracy", "f1", "f1_macro")
    assert custom_spec(("text",), ("a", "b", "c")).metrics == ("accuracy", "f1_macro")
    assert custom_spec(("text",), ("a", "b"), True).metrics == ("f1_micro", "f1_macro")
    assert custom_spec(("text",), None).metrics == ("pearson", "spearmanr")


def test_any_spelling_of_a_task_name():
    assert {canonical_name(name) for name in ("SST-2", "sst-2", "sst2", "SST_2")} == {"sst2"}


def test_take_and_head_keep_rows_together():
    examples = Examples(["a", "b", "c"], ["x", "y", "z"], np.asarray([0, 1, 2], np.int32))
    taken = examples.take(np.asarray([2, 0]))
    assert (taken.text_a, taken.text_b) == (["c", "a"], ["z", "x"])
    assert taken.labels is not None and taken.labels.tolist() == [2, 0]
    assert taken.labels.dtype == np.int32
    assert examples.head(2).text_a == ["a", "b"]
    assert len(examples.head(9)) == 3
    assert examples.head(None) is examples
    assert len(examples.take([])) == 0


def test_columns_of_unequal_length_are_refused():
    with pytest.raises(ValueError, match="one entry per row"):
        Examples(["a", "b"], None, np.zeros(1, np.int32))
