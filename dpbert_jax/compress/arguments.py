"""The flags of `dpbert compress`."""

from dataclasses import dataclass, field

from dpbert_jax.errors import UserError
from dpbert_jax.flags import flag


@dataclass(frozen=True)
class CompressArguments:
    model_name_or_path: str = field(
        metadata={"help": "Folder of a run; may be given first, without flag."}
    )
    output_dir: str = field(metadata={"help": "Folder to write; it must not hold anything yet."})
    embedding_bytes: float = flag(
        0.25,
        "What the word embeddings may take: bytes, or, below 1, a share of what they take in "
        "float32.",
    )
    text_file: str | None = flag(
        None,
        "Texts, one a line, whose tokens are counted: the frequent ones stay most exact. Default: "
        "the run's training rows.",
    )
    clusters: int | None = flag(
        None,
        "Clusters of tokens by frequency, each with a rank of its own; 1: a truncated SVD. "
        "Default: the number, of 1 to 8, that loses least.",
    )
    num_train_epochs: float = flag(
        1.0, "Epochs over the run's training rows that heal the model; 0: none."
    )

    def __post_init__(self) -> None:
        if not self.embedding_bytes > 0:
            raise UserError(
                f"--embedding_bytes is {self.embedding_bytes}, but must be above 0: bytes, or a "
                "share below 1."
            )
        if self.clusters is not None and self.clusters < 1:
            raise UserError(f"--clusters is {self.clusters}, but must be at least 1.")
        if not self.num_train_epochs >= 0:
            raise UserError(
                f"--num_train_epochs is {self.num_train_epochs}, but must be 0 or more."
            )

    def budget(self, float32_bytes: int) -> int:
        """Bytes for a table that takes so many in float32."""
        share = self.embedding_bytes < 1
        return int(self.embedding_bytes * float32_bytes if share else self.embedding_bytes)
