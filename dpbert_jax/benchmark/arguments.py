"""The flags of `dpbert benchmark`."""

from dataclasses import dataclass

from dpbert_jax.errors import UserError
from dpbert_jax.flags import flag


@dataclass(frozen=True)
class BenchmarkArguments:
    model: str = flag(
        "bert-base", "bert-base or minilm-shape (random weights), or the folder of a run."
    )
    batch_sizes: str = flag("1,8,32", "Rows of a batch, comma-separated.")
    seq_lengths: str = flag("32,128", "Tokens of a row, comma-separated; rows are full.")
    keep: str | None = flag(
        None,
        "Layers that each row runs, the stem's among them, comma-separated. Default: all, three "
        "quarters, half and a quarter of the model's.",
    )
    executors: str = flag("cond,packed,masked", "Of cond, chunked, packed, masked.")
    peers: str = flag(
        "",
        "Of torch, onnxruntime, openvino: the dense model there; and of export-torch, export-onnx, "
        "export-int8: the model as `dpbert export` writes it, without --data.",
    )
    plans: str | None = flag(
        None,
        "random: independent plans; planner: the planner's own, rule top_k. "
        "Default: planner for a run, random else.",
    )
    data: str | None = flag(
        None, "GLUE task folder: time its real validation sentences, from token ids to logits."
    )
    threads: int | None = flag(None, "Threads of the peers. Default: the cores of this process.")
    repeats: int = flag(15, "Timed calls of each variant.")
    seed: int = flag(0, "Of random weights, inputs and plans.")
    json: str | None = flag(None, "Write the figures here.")
    plot: str | None = flag(None, "Write the plot here (png, pdf or svg).")

    def __post_init__(self) -> None:
        for name in ("batch_sizes", "seq_lengths", "keep"):
            if getattr(self, name) is not None and min(self.numbers(name)) < 1:
                raise UserError(f"--{name} {getattr(self, name)}: every value must be at least 1.")
        if not self.names("executors"):
            raise UserError("--executors names none: give at least one.")
        if self.repeats < 1 or (self.threads is not None and self.threads < 1):
            raise UserError("--repeats and --threads must be at least 1.")
        if self.data and any(name.startswith("export-") for name in self.names("peers")):
            raise UserError("--peers export-*: exported models are timed without --data only.")
        if self.plans not in (None, "random", "planner"):
            raise UserError(f"--plans is '{self.plans}', but must be random or planner.")

    def numbers(self, name: str) -> list[int]:
        """A flag's comma-separated whole numbers."""
        try:
            return [int(part) for part in getattr(self, name).split(",")]
        except ValueError:
            raise UserError(
                f"--{name} is '{getattr(self, name)}', but must be whole numbers with commas."
            ) from None

    def names(self, name: str) -> list[str]:
        """A flag's comma-separated words."""
        return [part for part in getattr(self, name).split(",") if part]
