"""A whole run of `train.py` with what it cost: seconds, programs, memory.

`python -m dpbert_jax.benchmark.device_train FILE FLAGS`, where FLAGS are those of train.py, and
`--programs_of gpu` for a run on a CPU in the form that a GPU gets, to count its programs. Writes
FILE when the run is done. Beside the device's peak stands the estimate that refuses a batch.
"""

import collections
import dataclasses
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dpbert_jax.allocator  # noqa: F401  before NumPy and JAX: see there

# isort: split
import jax

from dpbert_jax.benchmark.environment import make_room, versions
from dpbert_jax.data import bucket_length
from dpbert_jax.errors import UserError
from dpbert_jax.flags import flag, parse, run_script
from dpbert_jax.hub import load_run
from dpbert_jax.programs import compiled_programs, keep_programs
from dpbert_jax.run_folder import METRICS, read_train_config
from dpbert_jax.training.arguments import TrainArguments
from dpbert_jax.training.memory import StepSize, step_bytes
from dpbert_jax.training.run import train


@dataclass(frozen=True)
class MeasuredArguments(TrainArguments):
    programs_of: str | None = flag(None, "cpu, gpu or tpu. Default: what this device is.")


def measured_run(args: TrainArguments, platform: str | None = None) -> dict[str, Any]:
    """Trains, in the form of a kind of device; what it took, ready for JSON."""
    hits = 0

    def count(event: str, **kwargs: str | int) -> None:
        nonlocal hits
        hits += event == "/jax/compilation_cache/cache_hits"

    jax.monitoring.register_event_listener(count)
    began = time.perf_counter()
    with compiled_programs() as compiled:
        train(args, platform)
    seconds = time.perf_counter() - began
    jax.monitoring.unregister_event_listener(count)

    folder = Path(args.output_dir)
    buckets = read_train_config(folder)["length_buckets"]
    config = load_run(str(folder))[1]
    longest = bucket_length(buckets[-1] if buckets else args.max_seq_length, args.max_seq_length)
    flags = (args.bf16, args.gradient_checkpointing)
    size = StepSize(args.per_device_train_batch_size, longest, *flags)
    device = jax.local_devices()[0]
    stats = device.memory_stats() or {}  # a CPU keeps none
    lines = [json.loads(line) for line in (folder / METRICS).read_text().splitlines()]
    named = [each for each in compiled if not each.on_host and not each.is_operation]
    return {
        "device": device.device_kind,
        "versions": versions(),
        "bf16": args.bf16,
        "gradient_checkpointing": args.gradient_checkpointing,
        "seed": args.seed,
        "length_buckets": buckets,
        "seconds": seconds,
        "programs": [[each.name, round(each.seconds, 3)] for each in named],
        "compiled_on_host": sum(each.on_host for each in compiled),
        "single_operations": sum(each.is_operation and not each.on_host for each in compiled),
        "compile_seconds": sum(each.seconds for each in compiled),
        "from_the_persistent_cache": hits,
        "peak_bytes": stats.get("peak_bytes_in_use"),
        "estimated_bytes": step_bytes(config, size),
        "last_lines": {line["phase"]: line for line in lines},
    }


def main() -> None:
    if len(sys.argv) < 3:
        raise UserError("Give a file for the figures, and then the flags of train.py.")
    path = Path(sys.argv[1])
    make_room("json", path)
    keep_programs()
    asked = parse(MeasuredArguments, __doc__, sys.argv[2:], script="train.py")
    names = [field.name for field in dataclasses.fields(TrainArguments)]
    args = TrainArguments(**{name: getattr(asked, name) for name in names})
    report = measured_run(args, asked.programs_of)
    path.write_text(json.dumps(report) + "\n", encoding="utf-8")
    counted = collections.Counter(name for name, _ in report["programs"])
    for name, count in counted.most_common():
        print(f"{count:4}  {name}")
    print(
        f"{counted.total():4}  programs; besides, {report['single_operations']} single operations "
        f"of JAX, and {report['compiled_on_host']} on the host's CPU"
    )


if __name__ == "__main__":
    run_script(main)
