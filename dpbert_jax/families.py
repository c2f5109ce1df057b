"""Encoder families: what differs among the encoders that one layer serves, a row for each.

All are post-norm transformer encoders with the same layer. Names are those of Hugging Face's
`config.json` and classes; the tensors' names are in `hub.keys`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from dpbert_jax.errors import UserError

HeadActivation = Literal["tanh", "relu", "gelu"]


@dataclass(frozen=True)
class Family:
    """One family; the defaults are BERT's."""

    model_type: str  # in config.json
    classes: str  # how the names of transformers' classes begin
    # Where config.json has other keys than BERT's; None: it has none, and `defaults` holds.
    config_keys: Mapping[str, str | None] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)  # where config.json says nothing
    # Positions are counted over the tokens that are no padding, from the padding's id + 1.
    positions_after_padding: bool = False
    token_types: bool = True  # whether there is an embedding of them
    relative_attention: bool = False  # a bias on the scores by distance, one for all layers
    head_activation: HeadActivation = "tanh"
    head_dropout_first: bool = False  # before the head's first product as well


# No projection of embeddings, no bias by distance.
_PLAIN = {"embedding_size": None, "relative_attention_num_buckets": None}
_ROBERTA: dict[str, Any] = {
    "config_keys": _PLAIN,
    "defaults": {"pad_token_id": 1},
    "positions_after_padding": True,
    "head_dropout_first": True,
}

FAMILIES = {
    family.model_type: family
    for family in (
        Family("bert", "Bert", _PLAIN),
        Family(
            "roberta",
            "Roberta",
            **{**_ROBERTA, "defaults": _ROBERTA["defaults"] | {"vocab_size": 50265}},
        ),
        Family("xlm-roberta", "XLMRoberta", **_ROBERTA),
        Family("camembert", "Camembert", **_ROBERTA),
        Family(
            "distilbert",
            "DistilBert",
            {
                **_PLAIN,
                "hidden_size": "dim",
                "num_hidden_layers": "n_layers",
                "num_attention_heads": "n_heads",
                "intermediate_size": "hidden_dim",
                "hidden_act": "activation",
                "hidden_dropout_prob": "dropout",
                "attention_probs_dropout_prob": "attention_dropout",
                "classifier_dropout": "seq_classif_dropout",
                "type_vocab_size": None,
                "layer_norm_eps": None,
            },
            {"num_hidden_layers": 6, "classifier_dropout": 0.2, "type_vocab_size": 1},
            token_types=False,
            head_activation="relu",
        ),
        Family(
            "electra",
            "Electra",
            {"relative_attention_num_buckets": None},
            {
                "embedding_size": 128,
                "hidden_size": 256,
                "num_attention_heads": 4,
                "intermediate_size": 1024,
            },
            head_activation="gelu",
            head_dropout_first=True,
        ),
        Family(
            "mpnet",
            "MPNet",
            {"embedding_size": None, "type_vocab_size": None, "classifier_dropout": None},
            {"vocab_size": 30527, "pad_token_id": 1, "type_vocab_size": 1},
            positions_after_padding=True,
            token_types=False,
            relative_attention=True,
            head_dropout_first=True,
        ),
    )
}


def family_of(model_type: Any, where: str) -> Family:
    """The family of a `config.json`'s model_type; `where` names the file in the error.

    >>> family_of("mpnet", "config.json").relative_attention
    True

    Raises:
        UserError: with the list of those that there are.
    """
    if model_type not in FAMILIES:
        raise UserError(
            f"{where}: model_type is {model_type!r}, but must be one of {', '.join(FAMILIES)}."
        )
    return FAMILIES[model_type]
