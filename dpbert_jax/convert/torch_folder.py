"""A folder that PyTorch loads: as a DPBERT with its code inside, and as a plain BERT."""

import json
import shutil
from pathlib import Path
from typing import Any

from dpbert_jax.config import DPBertConfig, to_hf_dict
from dpbert_jax.convert.huggingface import save_folder
from dpbert_jax.model import Params

REMOTE = Path(__file__).parent / "remote"
CODE = ("configuration_dpbert.py", "modeling_dpbert.py")
AUTO_MAP = {
    "AutoConfig": "configuration_dpbert.DPBertConfig",
    "AutoModelForSequenceClassification": "modeling_dpbert.DPBertForSequenceClassification",
}


def save_torch_folder(folder: Path, config: DPBertConfig, params: Params, tokenizer: Any) -> None:
    """Writes config, weights, tokenizer, and with a planner the model's code.

    `AutoModelForSequenceClassification.from_pretrained(folder, trust_remote_code=True)` gives the
    planned model, `BertForSequenceClassification.from_pretrained(folder)` the dense one.
    """
    save_folder(folder, config, params, tokenizer)
    if config.planner is None:
        return
    for name in CODE:
        shutil.copyfile(REMOTE / name, folder / name)
    values = {
        **to_hf_dict(config),
        "architectures": ["DPBertForSequenceClassification"],
        "auto_map": AUTO_MAP,
    }
    text = json.dumps(values, indent=2, sort_keys=True)
    (folder / "config.json").write_text(text + "\n", encoding="utf-8")
