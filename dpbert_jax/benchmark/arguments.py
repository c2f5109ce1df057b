"""The flags of `dpbert benchmark`."""

from dataclasses import dataclass

from dpbert_jax.errors import UserError
from dpbert_jax.flags import flag, list_flag


@dataclass(frozen=True)
class BenchmarkArguments:
    model_name_or_path: str = flag(
        "bert-base",
        "bert-base or minilm-shape (random weights), or the folder of a run; may be given first, "
        "without flag.",
    )
    batch_sizes: list[int] = list_flag([1, 8, 32], "Rows of a batch.")
    seq_lengths: list[int] = list_flag([32, 128], "Tokens of a row; rows are full.")
    keep: list[int] | None = flag(
        None,
        "Layers that each row runs, the stem's among them. Default: all, three quarters, half and "
        "a quarter of the model's.",
    )
    executors: list[str] = list_flag(
        ["cond", "packed", "masked"], "Of cond, chunked, packed, masked."
    )
    peers: list[str] = list_flag(
        [],
        "Of torch, onnxruntime, openvino: the dense model there; and of export-torch, export-onnx, "
        "export-int8: the model as `dpbert export` writes it, without --data_dir.",
    )
    plans: str | None = flag(
        None,
        "random: independent plans; planner: the planner's own, rule top_k. "
        "Default: planner for a run, random else.",
    )
    data_dir: str | None = flag(
        None,
        "Folder of a GLUE task's official TSV files: time its real validation sentences, from "
        "token ids to logits.",
    )
    threads: int | None = flag(None, "Threads of the peers. Default: the cores of this process.")
    bf16: bool = flag(False, "Compute in bfloat16; without peers, which compute in float32.")
    repeats: int = flag(15, "Timed calls of each variant.")
    seed: int = flag(0, "Of random weights, inputs and plans.")
    json: str | None = flag(None, "Write the figures here.")
    plot: str | None = flag(None, "Write the plot here (png, pdf or svg).")

    def __post_init__(self) -> None:
        for name in ("batch_sizes", "seq_lengths", "keep"):
            numbers = getattr(self, name)
            if numbers is not None and min(numbers, default=0) < 1:
                shown = " ".join(map(str, numbers))
                raise UserError(f"--{name} {shown}: every value must be at least 1.")
        if not self.executors:
            raise UserError("--executors names none: give at least one.")
        if self.repeats < 1 or (self.threads is not None and self.threads < 1):
            raise UserError("--repeats and --threads must be at least 1.")
        if self.data_dir and any(name.startswith("export-") for name in self.peers):
            raise UserError("--peers export-*: exported models are timed without --data_dir only.")
        if self.bf16 and self.peers:
            raise UserError("--bf16: the peers compute in float32; time them without it.")
        if self.plans not in (None, "random", "planner"):
            raise UserError(f"--plans is '{self.plans}', but must be random or planner.")
