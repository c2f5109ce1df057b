"""An ONNX export's bytes and the peak of a process that runs it."""

import json
import sys

import pytest

from dpbert_jax.benchmark.memory import MemoryArguments, measure
from dpbert_jax.errors import UserError
from dpbert_jax.model import Model


@pytest.fixture(scope="module")
def exported(tiny_run, tmp_path_factory):
    pytest.importorskip("onnxruntime")
    folder = tmp_path_factory.mktemp("exports") / "small"
    Model.from_pretrained(tiny_run).export("onnx", folder, int8_all=True)
    return folder


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_bytes_are_those_of_graph_and_weights_and_a_tiny_model_needs_few(exported, capsys):
    result = measure(MemoryArguments(str(exported), [8, 16]))
    files = [exported / "model.onnx", exported / "model.onnx.data"]
    assert result["bytes"] == sum(path.stat().st_size for path in files)
    assert list(result["peak_bytes"]) == [8, 16]
    assert all(0 < peak < 3e7 for peak in result["peak_bytes"].values())
    assert result["empty_bytes"] > 1e7
    printed = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert printed["bytes"] == result["bytes"]


def test_what_cannot_be_measured_is_one_sentence(exported, tiny_run):
    with pytest.raises(UserError, match=r"holds no model\.onnx"):
        measure(MemoryArguments(str(tiny_run), [8]))
    with pytest.raises(UserError, match="--seq_lengths 99: the model has positions for 32"):
        measure(MemoryArguments(str(exported), [8, 99]))
    with pytest.raises(UserError, match="none below 1"):
        MemoryArguments(str(exported), [])
