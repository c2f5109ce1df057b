"""A folder that PyTorch loads: as a DPBERT with its code inside, and as a plain BERT."""

import json
import math
from pathlib import Path
from typing import Any

from dpbert_jax.config import DPBertConfig
from dpbert_jax.config_file import to_hf_dict
from dpbert_jax.encoder.operations import Params
from dpbert_jax.hub.folders import save_folder
from dpbert_jax.hub.keys import NAMES
from dpbert_jax.integrity import update_sums, write_whole
from dpbert_jax.policies.cost import COST_UNITS
from dpbert_jax.policies.rule import budget_range

REMOTE = Path(__file__).parent / "remote"
CODE = ("configuration_dpbert.py", "modeling_dpbert.py", "modules_dpbert.py")
AUTO_MAP = {
    "AutoConfig": "configuration_dpbert.DPBertConfig",
    "AutoModelForSequenceClassification": "modeling_dpbert.DPBertForSequenceClassification",
}


def save_torch_folder(folder: Path, config: DPBertConfig, params: Params, tokenizer: Any) -> None:
    """Writes config, weights, tokenizer, and with a planner the model's code.

    `AutoModelForSequenceClassification.from_pretrained(folder, trust_remote_code=True)` gives the
    planned model, the family's own class (`BertForSequenceClassification`) the dense one.
    """
    save_folder(folder, config, params, tokenizer)
    if config.planner:
        save_torch_code(folder, config)
        save_card(folder, config)


def save_torch_code(folder: Path, config: DPBertConfig) -> None:
    """Adds the planned model's code to a folder of weights, and a config that names it."""
    classes = config.encoder.family.classes
    for name in CODE:
        text = (REMOTE / name).read_text(encoding="utf-8")
        # It is written for BERT's classes, named in one import; the other families' are called so.
        text = text.replace("import Bert", f"import {classes}")
        (folder / name).write_text(text, encoding="utf-8")
    values = {
        **to_hf_dict(config),
        "architectures": ["DPBertForSequenceClassification"],
        "auto_map": AUTO_MAP,
    }
    if config.adapters:
        names = NAMES[config.encoder.model_type]
        head = {"pooler": names.pooler, "classifier": names.classifier}
        values["dpbert"]["modules"] = {"layer": dict(names.layer), "head": head}
    text = json.dumps(values, indent=2, sort_keys=True)
    write_whole(folder / "config.json", text + "\n")
    update_sums(folder, ["config.json", *CODE])


def save_card(folder: Path, config: DPBertConfig) -> None:
    """Adds the model card: what the model does, its budgets, how to call it."""
    assert config.planner is not None
    encoder, planner = config.encoder, config.planner
    kind = "labels (any number of them)" if encoder.is_multi_label else "classes"
    head = (
        f"{kind} {', '.join(encoder.labels)}" if encoder.labels else f"{encoder.num_labels} {kind}"
    )
    head = "regression" if encoder.is_regression else head
    classes = encoder.family.classes
    plain = (
        f"The word embeddings are compressed: {classes}ForSequenceClassification cannot read them."
        if encoder.compression
        else f"`{classes}ForSequenceClassification.from_pretrained(FOLDER)` loads the same "
        "weights\nas a plain, dense model."
    )
    low, high = budget_range(config) or (1.0, 1.0)
    low = math.ceil(1000 * low) / 1000 if config.dial else low
    tokens = ", and which of its tokens they run on" if config.token_selectors else ""
    counts = "\nmade.tokens  # the same shape: how many each layer had" if tokens else ""
    rule = "" if config.calibration else ', plan_rule="top_k"'
    text = f"""---
library_name: transformers
pipeline_tag: text-classification
tags: [{encoder.model_type}, adaptive-computation, layer-skipping]
---

# A DPBERT

{encoder.family.classes} for sequence classification with a planner that decides, for every input,
which of its {encoder.num_hidden_layers} layers run{tokens}. Trained with dpbert_jax.
Output: {head}.

Budgets from {low} to {high}, and 1.0 for all layers: the share of the
dense encoder's FLOPs ({COST_UNITS[planner.cost_unit]}), met over inputs like those that
the thresholds were found on. No input runs fewer than
{config.stem_layers + config.min_gates} layers. A call without `budget` gets
{config.default_budget or 1.0}. More than {encoder.longest_input} tokens are an error.

```python
from transformers import AutoModelForSequenceClassification, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(FOLDER)
model = AutoModelForSequenceClassification.from_pretrained(FOLDER, trust_remote_code=True).eval()
batch = tokenizer("A text.", truncation=True, return_tensors="pt")
made = model(**batch, budget={low}{rule})
made.logits  # [B, {encoder.num_labels}]
made.layer_mask  # [B, {encoder.num_hidden_layers}], 1 where a layer ran{counts}
```

{plain}
"""
    write_whole(folder / "README.md", text)
    update_sums(folder, ["README.md"])
