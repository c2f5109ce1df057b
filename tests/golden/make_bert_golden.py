"""Makes `bert_tiny.npz`: a small random BERT of Hugging Face's, its inputs and what it answers.

The tests compare this library with the file, so that they need no PyTorch. Needs torch and
transformers, in an environment of their own; rerun only if the reference itself should change:

    pip install torch transformers
    python tests/golden/make_bert_golden.py
"""

import json
from pathlib import Path

import numpy as np
import torch
from transformers import BertConfig, BertForSequenceClassification

LENGTHS = (12, 7, 1, 9)  # real tokens a row; the rest is padding


def random_model() -> BertForSequenceClassification:
    """Every parameter random and large enough that a wrong one shows."""
    torch.manual_seed(7)
    config = BertConfig(
        vocab_size=97,
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=24,
        num_labels=3,
        attn_implementation="eager",
    )
    model = BertForSequenceClassification(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            centre = 1.0 if name.endswith("LayerNorm.weight") else 0.0
            parameter.copy_(centre + 0.25 * torch.randn_like(parameter))
    return model


def main() -> None:
    model = random_model()
    random = np.random.default_rng(7)
    shape = (len(LENGTHS), max(LENGTHS))
    positions, lengths = np.arange(shape[1])[None], np.array(LENGTHS)[:, None]
    inputs = {
        "input_ids": random.integers(1, model.config.vocab_size, shape),
        "attention_mask": (positions < lengths).astype(np.int64),
        "token_type_ids": (positions >= lengths // 2).astype(np.int64),
    }
    with torch.no_grad():
        tensors = {name: torch.from_numpy(value) for name, value in inputs.items()}
        encoded = model.bert(**tensors, output_hidden_states=True)
        logits = model(**tensors).logits
    arrays = {f"input/{name}": value.astype(np.int32) for name, value in inputs.items()}
    arrays |= {f"weight/{name}": value.numpy() for name, value in model.state_dict().items()}
    arrays |= {
        "config": np.array(json.dumps(model.config.to_dict(), sort_keys=True)),
        "hidden_states": torch.stack(encoded.hidden_states).numpy(),  # [1 + L, B, S, D]
        "pooled": encoded.pooler_output.numpy(),
        "logits": logits.numpy(),
    }
    np.savez_compressed(Path(__file__).with_name("bert_tiny.npz"), **arrays)


if __name__ == "__main__":
    main()
