"""Measures the memory of an ONNX export: its files, and the peak of a process that runs it.

Each peak is that of a fresh process (`memory_probe`) with one thread and without arena, memory
pattern and packed copies of weights, after 40 calls of one row with all layers, less the peak of
the same process with a graph of a single addition in the model's place.
"""

import json
import platform
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import onnx

from dpbert_jax.config_file import read_config
from dpbert_jax.errors import UserError
from dpbert_jax.export.onnx_format import ARTIFACT, WEIGHTS
from dpbert_jax.flags import flag, parse

CALLS = 40  # as many as an allocator takes to settle
MEGA = 1e6
LENGTHS = (32, 64, 128, 256, 512)


@dataclass(frozen=True)
class MemoryArguments:
    model_name_or_path: str = field(
        metadata={"help": "Folder of an ONNX export; may be given first, without flag."}
    )
    seq_lengths: list[int] | None = flag(
        None, "Tokens of a row. Default: 32, 64, 128, 256 and 512, as far as the model goes."
    )

    def __post_init__(self) -> None:
        if self.seq_lengths is not None and (not self.seq_lengths or min(self.seq_lengths) < 1):
            raise UserError("--seq_lengths: give one or more numbers of tokens, none below 1.")


def measure(args: MemoryArguments) -> dict:
    """Bytes of the artifact, and of the peak at each length; printed, a JSON line last.

    Raises:
        UserError: the folder holds no ONNX graph, a length is too long, or this is not Linux.
    """
    folder = Path(args.model_name_or_path)
    config = read_config(folder)
    if not (folder / ARTIFACT).is_file():
        raise UserError(f"{folder} holds no {ARTIFACT}: name a folder of `dpbert export`.")
    longest = config.encoder.longest_input
    lengths = args.seq_lengths or [length for length in LENGTHS if length <= longest]
    if max(lengths) > longest:
        raise UserError(f"--seq_lengths {max(lengths)}: the model has positions for {longest}.")
    if platform.system() != "Linux":
        raise UserError("dpbert benchmark-memory reads /proc: it runs on Linux only.")
    files = [folder / name for name in (ARTIFACT, WEIGHTS) if (folder / name).exists()]
    artifact = sum(path.stat().st_size for path in files)
    names = " ".join(config.encoder.inputs)
    about = (str(config.encoder.vocab_size), names, "1" if config.planner else "-")
    empty = _empty_peak()
    print(f"{folder}: {artifact / MEGA:.2f} MB; a process without a model: {empty / MEGA:.1f} MB")
    print("tokens  peak over it, MB")
    peaks = {}
    for length in lengths:
        peak = _probe([str(folder / ARTIFACT), str(CALLS), str(length), *about])
        peaks[length] = peak - empty
        print(f"{length:6d}  {peaks[length] / MEGA:16.1f}")
    result = {"model": str(folder), "bytes": artifact, "empty_bytes": empty, "peak_bytes": peaks}
    print(json.dumps(result))
    return result


def _empty_peak() -> int:
    number = onnx.TensorProto.INT64
    one = onnx.helper.make_tensor_value_info("input_ids", number, ["batch", "sequence"])
    total = onnx.helper.make_tensor_value_info("total", number, ["batch", "sequence"])
    node = onnx.helper.make_node("Add", ["input_ids", "input_ids"], ["total"])
    graph = onnx.helper.make_graph([node], "empty", [one], [total])
    opset = onnx.helper.make_opsetid("", 17)
    model = onnx.helper.make_model(graph, opset_imports=[opset], ir_version=9)
    with tempfile.TemporaryDirectory() as place:
        onnx.save(model, f"{place}/{ARTIFACT}")
        return _probe([f"{place}/{ARTIFACT}", str(CALLS), "8", "1000", "input_ids", "-"])


def _probe(arguments: Sequence[str]) -> int:
    script = Path(__file__).with_name("memory_probe.py")
    done = subprocess.run([sys.executable, str(script), *arguments], capture_output=True, text=True)
    if done.returncode:
        said = done.stderr.strip().splitlines() or [f"the process ended with {done.returncode}"]
        raise UserError(f"onnxruntime cannot run it: {said[-1]}.")
    return int(done.stdout)


def main() -> None:
    measure(parse(MemoryArguments, __doc__))
