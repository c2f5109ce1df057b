"""The command `dpbert`: a verb, and its flags."""

import importlib
import sys
from collections.abc import Sequence
from typing import NamedTuple


class Verb(NamedTuple):
    """Where a verb's `main` is, what it does, whether it trains, and what it needs."""

    module: str
    summary: str
    trains: bool = False
    extra: str = "train"  # what it needs, of this package's


VERBS = {
    "train": Verb("training.command", "fine-tune an encoder together with its planner", True),
    "eval": Verb("evaluation.command", "score a run at budgets, or answer a file's rows"),
    "predict": Verb("evaluation.predict", "answer texts: of a file, a pipe or flags"),
    "baselines": Verb("study.baselines", "train static models and early exits of a run", True),
    "sweep": Verb("study.sweep", "a run's whole curve, beside controls at the same cost"),
    "seeds": Verb("study.seeds", "means and deviations over the sweeps of several seeds"),
    "serve": Verb(
        "serve.command", "answer over HTTP, at a latency that holds under load", extra="serve"
    ),
    "load-test": Verb(
        "load.command", "load servers, and report what they held", extra="serve,train"
    ),
    "compare-policies": Verb(
        "load.policies", "simulate when a server's batches should start", extra="serve"
    ),
    "compress": Verb("compress.command", "a run's word embeddings as int8 factors", True),
    "export": Verb("export.command", "write a run for PyTorch, ONNX or StableHLO"),
    "benchmark": Verb("benchmark.command", "time what skipping is worth, beside other runtimes"),
    "benchmark-memory": Verb(
        "benchmark.memory", "a small ONNX export's bytes and peak memory", extra="onnx"
    ),
    "benchmark-training": Verb("benchmark.training", "time a training step beside PyTorch", True),
    "stack": Verb("hub.stack", "derive a deeper encoder by repeating all layers"),
}


def main(argv: Sequence[str] | None = None) -> None:
    """Runs a verb with the flags after it; what it cannot do is one sentence and exit code 2."""
    verb, *flags = list(sys.argv[1:] if argv is None else argv) or ["--help"]
    if verb in ("-h", "--help", "help"):
        print(usage())
        return
    if verb == "--version":
        from importlib.metadata import version

        print(f"dpbert-jax {version('dpbert-jax')}")
        return
    if verb not in VERBS:
        print(f"error: '{verb}' is not one of {', '.join(VERBS)}.", file=sys.stderr)
        sys.exit(2)
    if VERBS[verb].trains:
        import dpbert_jax.allocator  # noqa: F401  before NumPy and JAX: see there
    try:
        from dpbert_jax.flags import run_script
        from dpbert_jax.programs import keep_programs

        module = importlib.import_module(f"dpbert_jax.{VERBS[verb].module}")
    except ModuleNotFoundError as error:
        print(
            f"error: dpbert {verb} needs {error.name}, which is not installed: "
            f"pip install 'dpbert-jax[{VERBS[verb].extra}]'.",
            file=sys.stderr,
        )
        sys.exit(2)
    keep_programs()
    sys.argv = [f"dpbert {verb}", *flags]  # what argparse calls the program by
    run_script(module.main)


def usage() -> str:
    """What `dpbert --help` prints."""
    width = max(map(len, VERBS))
    verbs = "\n".join(f"  {name:{width}}  {verb.summary}" for name, verb in VERBS.items())
    return (
        "usage: dpbert VERB FLAGS, or dpbert VERB --help\n\n"
        f"BERT and its kin, whose layers a planner chooses for every input.\n\n{verbs}"
    )
