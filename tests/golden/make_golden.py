"""Makes `FAMILY_tiny.npz`: a small random model of Hugging Face's, its inputs and what it answers.

The tests compare this library with the files, so that they need no PyTorch. Needs torch and
transformers, in an environment of their own; rerun only if the reference itself should change:

    pip install torch transformers
    python tests/golden/make_golden.py
"""

import json
from pathlib import Path

import numpy as np
import torch
import transformers

LENGTHS = (12, 7, 1, 9)  # real tokens a row; the rest is padding
COMMON = {
    "vocab_size": 97,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 24,
}
# Family -> how its classes' names begin, and what its config is given beside COMMON.
FAMILIES = {
    "bert": ("Bert", {}),
    "roberta": ("Roberta", {"type_vocab_size": 1, "layer_norm_eps": 1e-5}),
    "distilbert": ("DistilBert", {"hidden_dim": 64}),
    "electra": ("Electra", {"embedding_size": 16}),
    # Longer than the distance at which the buckets of its attention end.
    "mpnet": ("MPNet", {"max_position_embeddings": 164, "layer_norm_eps": 1e-5}),
}
LONG = {"mpnet": (160, 7, 1, 140)}


def random_model(family: str) -> transformers.PreTrainedModel:
    """Every parameter random and large enough that a wrong one shows."""
    torch.manual_seed(7)
    classes, own = FAMILIES[family]
    config = getattr(transformers, f"{classes}Config")(
        **{**COMMON, **own}, num_labels=3, attn_implementation="eager"
    )
    model = getattr(transformers, f"{classes}ForSequenceClassification")(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            centre = 1.0 if "norm.weight" in name.lower() else 0.0
            parameter.copy_(centre + 0.25 * torch.randn_like(parameter))
    return model


def write(family: str) -> None:
    model = random_model(family)
    random = np.random.default_rng(7)
    every = LONG.get(family, LENGTHS)
    positions, lengths = np.arange(max(every))[None], np.array(every)[:, None]
    pad = model.config.pad_token_id
    ids = random.integers(pad + 1, model.config.vocab_size, (len(every), max(every)))
    inputs = {
        # Padded as a tokenizer does: the positions of some families follow from it.
        "input_ids": ids if family == "bert" else np.where(positions < lengths, ids, pad),
        "attention_mask": (positions < lengths).astype(np.int64),
    }
    if family in ("bert", "electra"):
        inputs["token_type_ids"] = (positions >= lengths // 2).astype(np.int64)
    with torch.no_grad():
        tensors = {name: torch.from_numpy(value) for name, value in inputs.items()}
        made = model(**tensors, output_hidden_states=True)
    arrays = {f"input/{name}": value.astype(np.int32) for name, value in inputs.items()}
    arrays |= {f"weight/{name}": value.numpy() for name, value in model.state_dict().items()}
    arrays |= {
        "config": np.array(json.dumps(model.config.to_dict(), sort_keys=True)),
        "hidden_states": torch.stack(made.hidden_states).numpy(),  # [1 + L, B, S, D]
        "logits": made.logits.numpy(),
    }
    if family == "bert":
        with torch.no_grad():
            arrays["pooled"] = model.bert(**tensors).pooler_output.numpy()
    np.savez_compressed(Path(__file__).with_name(f"{family}_tiny.npz"), **arrays)


if __name__ == "__main__":
    for each in FAMILIES:
        write(each)
