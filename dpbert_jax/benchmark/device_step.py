"""One step of `device.sh`: a process of its own that measures one thing and writes it at once.

`python -m dpbert_jax.benchmark.device_step STEP --json FILE`. What a device cannot do is written
down as such, and no reason to stop.
"""

import importlib
import importlib.util
import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dpbert_jax.benchmark.arguments import BenchmarkArguments
from dpbert_jax.benchmark.device_variants import attentions, decided_program, dense_program
from dpbert_jax.benchmark.environment import make_room, versions
from dpbert_jax.benchmark.subjects import Batch, Subject, load_subject, random_batch
from dpbert_jax.benchmark.timing import interleaved, summary
from dpbert_jax.errors import UserError
from dpbert_jax.flags import flag, list_flag, parse, run_script
from dpbert_jax.inference.executors import forced_gates
from dpbert_jax.inference.path import prepare
from dpbert_jax.policies.protocol import Planned

CHUNK_TOKENS = (512, 1024, 2048, 4096, 8192, 16384)
Report = dict[str, Any]


@dataclass(frozen=True)
class StepArguments:
    step: str = flag("machine", "machine, chunks, gates, attention, launches or torch.")
    json: str | None = flag(None, "Write the figures here.")
    model_name_or_path: str = flag(
        "bert-base", "bert-base or minilm-shape (random weights), or the folder of a run."
    )
    batch_sizes: list[int] = list_flag([32, 256], "Rows of a batch.")
    length: int = flag(128, "Tokens of a row.")
    keep: list[int] = list_flag([12, 9, 6, 3], "Layers that each row runs.")
    repeats: int = flag(30, "Timed calls of each variant.")

    def __post_init__(self) -> None:
        if self.step not in STEPS:
            raise UserError(f"--step {self.step}: must be one of {', '.join(STEPS)}.")
        if min(*self.batch_sizes, *self.keep, self.length, self.repeats) < 1:
            raise UserError("--batch_sizes, --keep, --length and --repeats must be at least 1.")


def run_step(args: StepArguments) -> Report:
    """Measures, prints a line of JSON, writes it."""
    if args.json:
        make_room("json", Path(args.json))
    device = jax.devices()[0]
    report: Report = {
        "step": args.step,
        "model": args.model_name_or_path,
        "device": device.device_kind,
        "versions": versions(),
        "rows": STEPS[args.step](args),
    }
    stats = device.memory_stats() or {}  # a CPU keeps none
    report["peak_bytes"] = stats.get("peak_bytes_in_use")
    line = json.dumps(report)
    if args.json:
        Path(args.json).write_text(line + "\n", encoding="utf-8")
    print(line)
    return report


def _subjects(args: StepArguments) -> list[Subject]:
    """The model in float32 and in bfloat16."""
    about: Any = {"model_name_or_path": args.model_name_or_path, "keep": args.keep}
    return [
        load_subject(BenchmarkArguments(**about, plans="random", bf16=bf16))
        for bf16 in (False, True)
    ]


def _batch(args: StepArguments, subject: Subject, rows: int) -> Batch:
    return random_batch(subject.model.config.encoder, rows, args.length, seed=0)


def _weights(subject: Subject) -> Any:
    model = subject.model
    return prepare(model.config, Planned(model.config), model.params, model.dtype)


def _timed(calls: dict[str, Callable[[], Any]], repeats: int, about: Report) -> list[Report]:
    found = interleaved({name: _waited(call) for name, call in calls.items()}, {}, repeats)
    return [{**about, "variant": name, **figures} for name, figures in found.items()]


def _waited(call: Callable[[], Any]) -> Callable[[], Any]:
    """Until the result is on the host."""
    return lambda: jax.device_get(call())


def _about(subject: Subject, rows: int) -> Report:
    return {"dtype": jnp.dtype(subject.model.dtype).name, "batch_size": rows}


def machine(args: StepArguments) -> list[Report]:
    """What there is."""
    stats = jax.devices()[0].memory_stats() or {}
    return [{"devices": jax.device_count(), "memory_bytes": stats.get("bytes_limit")}]


def chunks(args: StepArguments) -> list[Report]:
    """`chunked` by the tokens of a chunk, with every number of layers kept."""
    rows: list[Report] = []
    for subject in _subjects(args):
        for size in args.batch_sizes:
            batch = _batch(args, subject, size)
            sizes = sorted({min(max(tokens // args.length, 1), size) for tokens in CHUNK_TOKENS})
            calls: dict[str, Callable[[], Any]] = {}
            for chunk in sizes:
                execute = subject.model.executor("chunked", chunk_size=chunk)
                for keep in args.keep:
                    plan = subject.plan(size, keep, seed=0)
                    call = partial(execute, batch, subject.rule(keep), plan)
                    calls[f"chunks of {chunk}, {keep} layers"] = call
            rows += _timed(calls, args.repeats, _about(subject, size))
    return rows


def gates(args: StepArguments) -> list[Report]:
    """Batch 1: `cond` as it is, and with its layers decided at once."""
    rows: list[Report] = []
    for subject in _subjects(args):
        model, batch, weights = subject.model, _batch(args, subject, 1), _weights(subject)
        config, execute = model.config, model.executor("cond")
        program = decided_program(config, model.dtype)
        calls: dict[str, Callable[[], Any]] = {}
        for keep in args.keep:
            plan = subject.plan(1, keep, seed=0)
            rule, stem = subject.rule(keep), config.stem_layers
            calls[f"cond, {keep} layers"] = partial(execute, batch, rule, plan)
            forced = forced_gates(config, stem, plan, 1)
            calls[f"decided, {keep} layers"] = partial(
                program, weights, **batch, rule=rule, forced=forced
            )
        rows += _timed(calls, args.repeats, _about(subject, 1))
    return rows


def attention(args: StepArguments) -> list[Report]:
    """All layers of a batch, by the attention that they have."""
    rows: list[Report] = []
    for subject in _subjects(args):
        model, weights = subject.model, _weights(subject)
        for size in args.batch_sizes:
            batch = _batch(args, subject, size)
            for name, attend in attentions(jax.default_backend(), model.dtype).items():
                program = dense_program(model.config, model.dtype, attend)
                about = _about(subject, size)
                try:
                    rows += _timed({name: partial(program, weights, **batch)}, args.repeats, about)
                except (jax.errors.JaxRuntimeError, RuntimeError, ValueError) as error:
                    reason = str(error).splitlines()[0]
                    rows.append({**about, "variant": name, "failed": reason})
    return rows


def launches(args: StepArguments) -> list[Report]:
    """What runs on the device in one call at batch 1, counted in a profile."""
    rows: list[Report] = []
    for subject in _subjects(args):
        execute, batch = subject.model.executor("cond"), _batch(args, subject, 1)
        for keep in args.keep:
            plan = subject.plan(1, keep, seed=0)
            call = _waited(partial(execute, batch, subject.rule(keep), plan))
            call()
            with tempfile.TemporaryDirectory() as folder:
                with jax.profiler.trace(folder):
                    call()
                counted = device_events(Path(folder))
            rows.append({**_about(subject, 1), "keep": keep, "events": counted})
    return rows


def device_events(folder: Path) -> dict[str, int]:
    """Events of a profile by the device's line that they are on; none where only a CPU ran."""
    found: dict[str, int] = {}
    for path in folder.rglob("*.xplane.pb"):
        profile: Any = jax.profiler.ProfileData.from_file(str(path))
        for plane in profile.planes:
            if plane.name.startswith("/device:"):
                for line in plane.lines:
                    found[f"{plane.name} {line.name}"] = len(list(line.events))
    return found


def torch(args: StepArguments) -> list[Report]:
    """PyTorch on the same card, bfloat16, plain and compiled: dense models of each depth."""
    if importlib.util.find_spec("torch") is None:
        return [{"skipped": "torch is not installed"}]
    library: Any = importlib.import_module("torch")
    if not library.cuda.is_available():
        return [{"skipped": "torch sees no card"}]
    transformers: Any = importlib.import_module("transformers")
    encoder = _subjects(args)[0].model.config.encoder
    rows: list[Report] = []
    for layers in args.keep:
        shape = transformers.BertConfig(
            vocab_size=encoder.vocab_size,
            hidden_size=encoder.hidden_size,
            num_hidden_layers=layers,
            num_attention_heads=encoder.num_attention_heads,
            intermediate_size=encoder.intermediate_size,
            attn_implementation="sdpa",
        )
        made = transformers.BertForSequenceClassification(shape)
        plain = made.eval().to("cuda", library.bfloat16)
        for name, model in (
            ("torch", plain),
            ("torch.compile", library.compile(plain, mode="reduce-overhead")),
        ):
            for size in (1, *args.batch_sizes):
                ids = library.randint(1, encoder.vocab_size, (size, args.length), device="cuda")
                call = partial(_torch_call, library, model, ids)
                for _ in range(3):
                    call()
                seconds = []
                for _ in range(args.repeats):
                    began = time.perf_counter()
                    call()
                    seconds.append(time.perf_counter() - began)
                about = {"variant": name, "keep": layers, "batch_size": size, "dtype": "bfloat16"}
                rows.append({**about, **summary(seconds)})
    return rows


def _torch_call(library: Any, model: Any, ids: Any) -> np.ndarray:
    with library.inference_mode():
        return model(input_ids=ids, attention_mask=library.ones_like(ids)).logits.float().cpu()


STEPS: dict[str, Callable[[StepArguments], list[Report]]] = {
    "machine": machine,
    "chunks": chunks,
    "gates": gates,
    "attention": attention,
    "launches": launches,
    "torch": torch,
}


def main() -> None:
    run_step(parse(StepArguments, __doc__, positional="step"))


if __name__ == "__main__":
    run_script(main)
