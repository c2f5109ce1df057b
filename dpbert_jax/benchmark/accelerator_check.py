"""Compiles every program of a run for an H100 and a TPU, ahead of time and without either.

`python -m dpbert_jax.benchmark.accelerator_check`, or `make accelerator-check`, which installs what
it needs: JAX's CUDA plugin and libtpu. Prints a table, a line for each program as it is done; with
`--json` all of it is written there. A program that does not compile is named with the compiler's
words, and the exit code is 1.

Seconds are those of this machine's CPU, without autotuning, which needs the card. Kernels are
counted in the compiled text: fusions and calls of libraries.
"""

import json
import re
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import jax
from jax.sharding import SingleDeviceSharding

from dpbert_jax.benchmark.environment import make_room, versions
from dpbert_jax.benchmark.run_programs import Program, Sizes, run_programs
from dpbert_jax.benchmark.subjects import SHAPES
from dpbert_jax.errors import UserError
from dpbert_jax.flags import flag, list_flag, parse, run_script

PLATFORMS = {"h100": "gpu", "v5e": "tpu"}  # devices, and the platform whose chunk sizes they get
HEAD = ("device", "program", "lowered s", "compiled s", "temporaries MiB", "fusions", "library")


@dataclass(frozen=True)
class CheckArguments:
    model_name_or_path: str = flag(
        "minilm-shape", f"{' or '.join(SHAPES)} (shapes alone count); may be given first."
    )
    devices: list[str] = list_flag(list(PLATFORMS), "Of h100, v5e.")
    rows: int = flag(32, "Rows of a batch.")
    length: int = flag(128, "Tokens of a row.")
    only: list[str] | None = flag(None, "Programs whose names hold one of these. Default: all.")
    json: str | None = flag(None, "Write the table here.")

    def __post_init__(self) -> None:
        if self.model_name_or_path not in SHAPES:
            raise UserError(f"{self.model_name_or_path} is not one of {', '.join(SHAPES)}.")
        if not self.devices or set(self.devices) - set(PLATFORMS):
            raise UserError(f"--devices {' '.join(self.devices)}: must be of {list(PLATFORMS)}.")
        if min(self.rows, self.length) < 1:
            raise UserError("--rows and --length must be at least 1.")


def topology_device(name: str) -> Any:
    """A device to compile for that is not there.

    Raises:
        UserError: the compiler for it is not installed, or refuses.
    """
    from jax.experimental import topologies

    try:
        if name == "v5e":
            return topologies.get_topology_desc("v5e:2x2", "tpu").devices[0]
        config = (files("dpbert_jax.benchmark") / "h100.txtpb").read_text(encoding="utf-8")
        about = {"target_config": config, "topology": "1x1x1"}
        return topologies.get_topology_desc(name, "cuda", **about).devices[0]
    except Exception as error:  # a missing plugin, a library that does not load: told as it is
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"--devices {name}: there is no compiler for it here ({reason}): "
            "pip install 'dpbert-jax[accelerator-check]'."
        ) from error


def compile_for(program: Program, device: Any) -> dict[str, Any]:
    """Compiles a program for a device; seconds, bytes and kernels, or the compiler's words."""
    made = program.make(device)
    placed: Any = SingleDeviceSharding(device)

    def function(*arguments: Any) -> Any:
        return made(*arguments)

    row: dict[str, Any] = {"program": program.name}
    began = time.perf_counter()
    try:
        jitted = jax.jit(function, in_shardings=placed, out_shardings=placed)
        lowered = jitted.lower(*program.arguments)
        row["lowered_seconds"] = time.perf_counter() - began
        began = time.perf_counter()
        compiled = lowered.compile()
        row["compiled_seconds"] = time.perf_counter() - began
    except jax.errors.JaxRuntimeError as error:
        return {**row, "failed": str(error).splitlines()[0]}
    memory, text = compiled.memory_analysis(), compiled.as_text() or ""
    row["temporaries_mib"] = memory.temp_size_in_bytes / 2**20 if memory else None
    return {**row, **kernels(text)}


def kernels(text: str) -> dict[str, int]:
    """How many kernels a compiled program's text launches at most once each.

    >>> kernels("%a = f32[] fusion(%b), kind=kLoop\\n%c = (f32[]) custom-call(%a)")
    {'fusions': 1, 'library_calls': 1}
    """
    return {
        "fusions": len(re.findall(r" fusion\(", text)),
        "library_calls": len(re.findall(r" custom-call\(", text)),
    }


def check(args: CheckArguments, device_of: Callable[[str], Any] = topology_device) -> bool:
    """Compiles, prints, writes; whether all of it compiled."""
    if args.json:
        make_room("json", Path(args.json))
    rows: list[dict[str, Any]] = []
    print("  ".join(HEAD))
    for name in args.devices:
        device = device_of(name)
        sizes = Sizes(args.rows, args.length, PLATFORMS[name])
        for program in run_programs(SHAPES[args.model_name_or_path], sizes):
            if args.only and not any(part in program.name for part in args.only):
                continue
            rows.append({"device": name, **compile_for(program, device)})
            print(_line(rows[-1]), flush=True)
            if args.json:  # at once: a compiler that dies takes no figure with it
                report = {"model": args.model_name_or_path, "versions": versions(), "rows": rows}
                Path(args.json).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    failed = [row for row in rows if "failed" in row]
    print(f"{len(rows) - len(failed)} of {len(rows)} programs compile.")
    return not failed


def _line(row: dict[str, Any]) -> str:
    if "failed" in row:
        return f"{row['device']}  {row['program']:40}  FAILED: {row['failed']}"
    memory = row["temporaries_mib"]
    shown = "-" if memory is None else f"{memory:.1f}"
    return (
        f"{row['device']}  {row['program']:40}{row['lowered_seconds']:8.1f}"
        f"{row['compiled_seconds']:8.1f}{shown:>10}{row['fusions']:6}{row['library_calls']:6}"
    )


def main() -> None:
    if not check(parse(CheckArguments, __doc__)):
        sys.exit(1)


if __name__ == "__main__":
    run_script(main)
