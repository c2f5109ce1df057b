"""Reads and writes a configuration as `config.json`.

In a file the encoder's fields are named as the family names them, so that a DPBERT folder's
`config.json` is also that of its plain encoder; everything of ours sits under the one extra key
`dpbert`.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

from dpbert_jax.config import (
    FLOPS,
    AdapterConfig,
    Calibration,
    DPBertConfig,
    EmbeddingCompression,
    EncoderConfig,
    PlannerConfig,
)
from dpbert_jax.errors import UserError
from dpbert_jax.families import Family, family_of
from dpbert_jax.integrity import verify, write_whole
from dpbert_jax.problem import PROBLEM_TYPES, REGRESSION, SINGLE_LABEL


def from_hf_dict(values: dict[str, Any], where: str) -> DPBertConfig:
    """Builds a config from the contents of a `config.json`; `where` names it in errors.

    >>> encoder = from_hf_dict({"model_type": "distilbert", "dim": 384}, "config.json").encoder
    >>> encoder.hidden_size, encoder.num_hidden_layers, encoder.longest_input
    (384, 6, 512)
    """
    family = family_of(values.get("model_type"), where)
    if values.get("position_embedding_type", "absolute") != "absolute":
        raise UserError(f"{where}: only absolute position embeddings can be loaded.")
    fields = dict(family.defaults)
    for name, key in _keys(family).items():
        if values.get(key) is not None:
            fields[name] = values[key]
    names = values.get("id2label")
    if names:
        ordered = tuple(str(names[key]) for key in sorted(names, key=int))
        # Hugging Face fills in LABEL_0, LABEL_1, ... where nobody gave names.
        generic = all(name == f"LABEL_{i}" for i, name in enumerate(ordered))
        fields |= {"labels": None if generic else ordered, "num_labels": len(ordered)}
    fields["model_type"] = family.model_type
    # Hugging Face's rule: one output means regression unless the config says otherwise.
    problem = values.get("problem_type") or (
        REGRESSION if fields.get("num_labels") == 1 else SINGLE_LABEL
    )
    if problem not in PROBLEM_TYPES:
        raise UserError(f"{where}: problem_type '{problem}' is not one of {list(PROBLEM_TYPES)}.")
    fields["problem_type"] = problem
    extra = values.get("dpbert")
    try:
        clusters = extra.get("embedding_compression") if extra else None
        if clusters:
            fields["compression"] = EmbeddingCompression(
                tuple(clusters["sizes"]), tuple(clusters["ranks"])
            )
        encoder = EncoderConfig(**fields)
        if extra is None:
            return DPBertConfig(encoder)
        calibration = extra.get("calibration")
        return DPBertConfig(
            encoder,
            PlannerConfig(**extra["planner"]) if extra["planner"] else None,
            Calibration(
                tuple(calibration["budgets"]),
                tuple(calibration["thresholds"]),
                calibration.get("inputs"),
                tuple(calibration["stays"]) if calibration.get("stays") else None,
            )
            if calibration
            else None,
            extra.get("default_budget"),
            AdapterConfig(**extra["adapters"]) if extra.get("adapters") else None,
            extra.get("token_selectors", False),
            extra.get("cost_unit", FLOPS),
        )
    except (TypeError, KeyError, AttributeError) as error:
        raise UserError(f"{where} is not a configuration of this library: {error}.") from error


def _keys(family: Family) -> dict[str, str]:
    """Fields of `EncoderConfig` -> keys of the family's `config.json`."""
    ours = ("labels", "compression")
    names = [field.name for field in dataclasses.fields(EncoderConfig) if field.name not in ours]
    keys = {name: family.config_keys.get(name, name) for name in names}
    return {name: key for name, key in keys.items() if key is not None}


def to_hf_dict(config: DPBertConfig) -> dict[str, Any]:
    """The contents of a `config.json`; the inverse of `from_hf_dict`."""
    encoder, names = config.encoder, config.encoder.label_names
    values: dict[str, Any] = {
        key: getattr(encoder, name)
        for name, key in _keys(encoder.family).items()
        if name != "num_labels"
    }
    if "embedding_size" in values:
        values["embedding_size"] = encoder.token_size
    values |= {
        "architectures": [f"{encoder.family.classes}ForSequenceClassification"],
        "position_embedding_type": "absolute",
        "id2label": {str(i): name for i, name in enumerate(names)},
        "label2id": {name: i for i, name in enumerate(names)},
    }
    if config.planner or config.token_selectors:
        values["dpbert"] = {
            "planner": dataclasses.asdict(config.planner) if config.planner else None,
            "calibration": config.calibration.to_dict() if config.calibration else None,
            "default_budget": config.default_budget,
        }
        if config.adapters:
            values["dpbert"]["adapters"] = dataclasses.asdict(config.adapters)
        if config.token_selectors:
            values["dpbert"] |= {"token_selectors": True, "cost_unit": config.cost_unit}
        if encoder.compression:
            values["dpbert"]["embedding_compression"] = dataclasses.asdict(encoder.compression)
    return values


def read_config(folder: Path) -> DPBertConfig:
    """Reads `folder/config.json`.

    Raises:
        UserError: it is not there, not what the folder's checksums list, or no configuration.
    """
    path = folder / "config.json"
    verify(folder, path.name.__eq__)
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(
            f"{folder} has no config.json: it is not the folder of a model or run."
        ) from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid JSON: {error}.") from error
    if not isinstance(values, dict):
        raise UserError(f"{path} holds no JSON object.")
    return from_hf_dict(values, str(path))


def write_config(config: DPBertConfig, folder: Path) -> None:
    """Writes `folder/config.json`, in one move."""
    text = json.dumps(to_hf_dict(config), indent=2, sort_keys=True)
    write_whole(folder / "config.json", text + "\n")
