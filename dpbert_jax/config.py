"""Configuration of the encoder, the planner and their sum; `config_file` reads and writes it.

Field names of `EncoderConfig` are those of Hugging Face's BERT.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any

from dpbert_jax.errors import UserError
from dpbert_jax.families import FAMILIES, Family
from dpbert_jax.problem import (
    MULTI_LABEL,
    REGRESSION,
    SINGLE_LABEL,
    ProblemType,
)

ACTIVATIONS = ("gelu", "gelu_new", "relu")
ROWS, FLOPS = "rows", "flops"


@dataclass(frozen=True)
class EmbeddingCompression:
    """Clusters that the tokens were sorted into, the most frequent first (`encoder.word_table`)."""

    sizes: tuple[int, ...]  # tokens of each cluster
    ranks: tuple[int, ...]  # of each cluster's factors

    def __post_init__(self) -> None:
        if not 0 < len(self.sizes) == len(self.ranks) or min(*self.sizes, *self.ranks) < 1:
            raise UserError(
                "dpbert.embedding_compression must hold the size and the rank of each cluster, "
                "none below 1."
            )


@dataclass(frozen=True)
class EncoderConfig:
    """Hyper-parameters of an encoder with a head for sequences; by default BERT-base's."""

    model_type: str = "bert"  # of Hugging Face: names the family
    vocab_size: int = 30522
    hidden_size: int = 768
    embedding_size: int | None = None  # of tokens, before a projection; None: hidden_size
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    classifier_dropout: float | None = None  # None: hidden_dropout_prob, as Hugging Face has it
    max_position_embeddings: int = 512
    type_vocab_size: int = 2  # 1 where there are no token types
    relative_attention_num_buckets: int = 32  # where the family has a bias by distance
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-12
    pad_token_id: int = 0
    num_labels: int = 2
    labels: tuple[str, ...] | None = None  # class names in id order; None where there are none
    problem_type: ProblemType = SINGLE_LABEL
    compression: EmbeddingCompression | None = None  # of the word table; None: a plain one

    def __post_init__(self) -> None:
        if self.hidden_size % self.num_attention_heads:
            raise UserError(
                f"hidden_size {self.hidden_size} is not a multiple of num_attention_heads "
                f"{self.num_attention_heads}."
            )
        for rate in (self.hidden_dropout_prob, self.attention_probs_dropout_prob):
            if not 0 <= rate <= 0.9:
                raise UserError(f"A dropout probability is {rate}, but must lie in [0, 0.9].")
        if self.labels is not None and len(self.labels) != self.num_labels:
            raise UserError(
                f"There are {len(self.labels)} labels, but num_labels is {self.num_labels}."
            )
        if self.hidden_act not in ACTIVATIONS:
            raise UserError(f"hidden_act '{self.hidden_act}' is not one of {list(ACTIVATIONS)}.")
        if self.compression and sum(self.compression.sizes) != self.vocab_size:
            raise UserError(
                f"The clusters of dpbert.embedding_compression have {sum(self.compression.sizes)} "
                f"tokens, but vocab_size is {self.vocab_size}."
            )

    @property
    def family(self) -> Family:
        return FAMILIES[self.model_type]

    @property
    def head_size(self) -> int:
        return self.hidden_size // self.num_attention_heads

    @property
    def token_size(self) -> int:
        """Width of the embeddings' tables."""
        return self.embedding_size or self.hidden_size

    @property
    def projects(self) -> bool:
        """Whether embeddings are projected to the hidden size."""
        return self.token_size != self.hidden_size

    @property
    def longest_input(self) -> int:
        """Tokens that there are positions for."""
        unused = self.pad_token_id + 1 if self.family.positions_after_padding else 0
        return self.max_position_embeddings - unused

    @property
    def inputs(self) -> tuple[str, ...]:
        """What a tokenizer of the family gives, by name."""
        types = ("token_type_ids",) if self.type_vocab_size > 1 else ()
        return ("input_ids", "attention_mask", *types)

    @property
    def label_names(self) -> tuple[str, ...]:
        """A name for every output: Hugging Face's LABEL_0, LABEL_1, ... where nobody gave any."""
        return self.labels or tuple(f"LABEL_{i}" for i in range(self.num_labels))

    @property
    def is_regression(self) -> bool:
        return self.problem_type == REGRESSION

    @property
    def is_multi_label(self) -> bool:
        return self.problem_type == MULTI_LABEL


@dataclass(frozen=True)
class PlannerConfig:
    """Hyper-parameters of the planner and the range of budgets that it was trained for."""

    stem_layers: int = 1  # layers that always run and whose output the planner reads
    hidden_size: int = 64
    logit_bound: float = 6.0  # gate logits lie in (-bound, bound): gates never saturate for good
    min_budget: float = 0.4
    max_budget: float = 1.0
    min_layers: int = 0  # no input runs fewer, the stem's among them
    # What a budget is a share of: `rows`, each input's own dense FLOPs, mean over the inputs, or
    # `flops`, those of all inputs together, where a long one counts for more.
    cost_unit: str = ROWS


@dataclass(frozen=True)
class AdapterConfig:
    """What plans of each depth below all layers have of their own (`encoder.adapters`)."""

    rank: int = 8  # of the additions to products; 0: LayerNorms and head only


@dataclass(frozen=True)
class Calibration:
    """Thresholds on the gate logits that make a split's mean cost equal the budget, on a grid."""

    budgets: tuple[float, ...]  # ascending
    thresholds: tuple[float, ...]  # descending: a larger budget runs what a smaller one did
    inputs: str | None = None  # what they were found on; None: not recorded
    # Of a model that drops tokens: the stay logits below which they do, descending. None: those of
    # less than one half do, whatever the budget, which is then of the layers alone.
    stays: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        falling = sorted(self.thresholds, reverse=True)
        if (
            len(self.budgets) != len(self.thresholds)
            or list(self.budgets) != sorted(self.budgets)
            or list(self.thresholds) != falling
        ):
            raise UserError(
                "dpbert.calibration must hold ascending budgets and a threshold for each, "
                "descending. Runs of versions whose planner read the budget must be trained again."
            )
        stays = self.stays
        if stays and (len(stays) != len(self.budgets) or list(stays) != sorted(stays)[::-1]):
            raise UserError("dpbert.calibration.stays must be one for each budget, descending.")

    def to_dict(self) -> dict[str, Any]:
        """As `config.json` has it."""
        fields = dataclasses.asdict(self)
        return fields if self.stays else {k: v for k, v in fields.items() if k != "stays"}


@dataclass(frozen=True)
class DPBertConfig:
    """A BERT, and a planner over its layers; `planner=None`: every layer runs."""

    encoder: EncoderConfig
    planner: PlannerConfig | None = None
    calibration: Calibration | None = None
    default_budget: float | None = None  # of an export, for calls that name none; None: 1
    adapters: AdapterConfig | None = None  # of plans of each depth; only beside a planner
    token_selectors: bool = False  # whether tokens drop out on the way (`policies.tokens`)
    # What costs are means of where no planner says so: of the run whose baseline this is.
    cost_unit: str = FLOPS

    def __post_init__(self) -> None:
        if self.default_budget is not None and not 0 < self.default_budget <= 1:
            raise UserError(
                f"default_budget is {self.default_budget}, but must lie in (0, 1]: a share of the "
                "dense FLOPs."
            )
        if self.adapters and not (self.planner and self.adapters.rank >= 0):
            raise UserError(
                "dpbert.adapters must have a rank of at least 0 and stand beside a planner, whose "
                "plans they are for."
            )
        if self.encoder.compression and not self.planner:
            raise UserError("dpbert.embedding_compression must stand beside a planner.")
        if self.token_selectors:
            self._check_selectors()
        if self.planner and not 0 <= self.planner.stem_layers < self.encoder.num_hidden_layers:
            raise UserError(
                f"stem_layers is {self.planner.stem_layers}, but must lie in 0 .. "
                f"{self.encoder.num_hidden_layers - 1}: the model has "
                f"{self.encoder.num_hidden_layers} layers and the planner needs at least one to "
                "plan."
            )
        unit = (self.planner or self).cost_unit
        if unit not in (ROWS, FLOPS):
            raise UserError(f"cost_unit is '{unit}', but must be {ROWS} or {FLOPS}.")
        if self.planner and not 0 <= self.planner.min_layers <= self.encoder.num_hidden_layers:
            raise UserError(
                f"min_layers is {self.planner.min_layers}, but the model has "
                f"{self.encoder.num_hidden_layers} layers."
            )

    def _check_selectors(self) -> None:
        if self.encoder.num_hidden_layers < 2:
            raise UserError("TR-BERT drops tokens between layers, and this model has one.")
        if self.encoder.family.relative_attention:
            raise UserError(
                f"A {self.encoder.model_type} tells tokens by their distance, which changes where "
                "some drop out: TR-BERT is for models with a position for each token."
            )
        if self.adapters:
            raise UserError("TR-BERT cannot drop tokens of a model with adapters by depth.")

    @property
    def stem_layers(self) -> int:
        """Layers that run for every input: all of them where there is no planner."""
        return self.planner.stem_layers if self.planner else self.encoder.num_hidden_layers

    @property
    def dial(self) -> Calibration | None:
        """The calibration, where it splits budgets between layers and tokens."""
        return self.calibration if self.calibration and self.calibration.stays else None

    @property
    def num_gates(self) -> int:
        """Planned layers, P = L - stem_layers."""
        return self.encoder.num_hidden_layers - self.stem_layers

    @property
    def adapted_depths(self) -> int:
        """How many depths have adapters: those that plans may have, but for all layers."""
        return self.num_gates - self.min_gates if self.adapters else 0

    @property
    def min_gates(self) -> int:
        """Planned layers that run whatever the threshold: those with the row's largest logits."""
        return max(self.planner.min_layers - self.stem_layers, 0) if self.planner else 0


BERT_BASE = EncoderConfig()
TINY = EncoderConfig(  # for tests: small enough to try all 2^L plans
    vocab_size=64,
    hidden_size=16,
    num_hidden_layers=4,
    num_attention_heads=2,
    intermediate_size=32,
    max_position_embeddings=32,
)
PRESETS = {"bert-base": BERT_BASE, "tiny": TINY}
