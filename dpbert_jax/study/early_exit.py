"""Training of early exits: a classifier after every layer (`policies.early_exit` runs them).

DeeBERT (Xin et al., ACL 2020, 2004.12993): the fine-tuned model is frozen, its exits are trained on
the sum of their losses, and an input leaves at the first whose entropy is below a threshold.
PABEE (Zhou et al., NeurIPS 2020, 2006.04152): model and exits are trained together on the mean of
the losses weighted by depth, and an input leaves once `patience` exits in a row agree with the one
before (regression: differ from it by less than a tolerance).

Both on the run's own backbone, rows and number of steps; PABEE starts from the run's fine-tuned
model, where its authors start from the pretrained one. Neither is distilled, as published.
"""

from functools import partial
from pathlib import Path
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int
from safetensors.numpy import load_file

from dpbert_jax.config import DPBertConfig, EncoderConfig
from dpbert_jax.data import INPUTS, TokenizedSplit, batches
from dpbert_jax.encoder.attention import RELATIVE, score_bias
from dpbert_jax.encoder.embeddings import embed
from dpbert_jax.encoder.head import classify
from dpbert_jax.encoder.modules import Embeddings, Head, Layer, affine, relative_attention
from dpbert_jax.encoder.operations import DropoutKeys, Params, dense, fold_rows
from dpbert_jax.evaluation.runner import compute_dtype
from dpbert_jax.hub.folders import WEIGHTS, put_weights
from dpbert_jax.integrity import verify
from dpbert_jax.policies.early_exit import entropy
from dpbert_jax.problem import SINGLE_LABEL, ProblemType, answers
from dpbert_jax.run_folder import BASELINES
from dpbert_jax.study.fit import Run, fit
from dpbert_jax.training.objective import row_losses, score_sums
from dpbert_jax.training.step import Moment

Method = Literal["deebert", "pabee"]


class EarlyExitBert(nn.Module):
    """BERT with a pooler and classifier behind every layer; the last is the model's own.

    With `halts` there is a halting unit beside each, whose word is a column more.
    """

    config: EncoderConfig
    dtype: DTypeLike = jnp.float32
    halts: bool = False

    @nn.compact
    def __call__(
        self,
        input_ids: Int[Array, "B S"],
        attention_mask: Int[Array, "B S"],
        token_type_ids: Int[Array, "B S"],
        dropout_keys: DropoutKeys = None,
        freeze_backbone: bool = False,
    ) -> Float[Array, "B L C1"]:
        config = self.config
        keys = [fold_rows(dropout_keys, i) for i in range(2 * config.num_hidden_layers + 1)]
        inner = [None] * len(keys) if freeze_backbone else keys  # a frozen model has no dropout
        weights = Embeddings(config, name="embeddings")()
        states = embed(
            config, weights, input_ids, token_type_ids, self.dtype, dropout_keys=inner[0]
        )
        relative = relative_attention(config, RELATIVE)
        bias = score_bias(config, relative() if relative else {}, attention_mask)
        logits = []
        for i in range(config.num_hidden_layers):
            states = Layer(config, self.dtype, name=f"layer_{i}")(states, bias, inner[1 + i])
            read = jax.lax.stop_gradient(states) if freeze_backbone else states
            exit_keys = keys[1 + config.num_hidden_layers + i]
            head = Head(config, name=f"exit_{i}")()
            said = classify(config, head, read[:, 0], self.dtype, exit_keys)[1]
            if self.halts:
                unit = affine(config.hidden_size, 1, config.initializer_range, f"halt_{i}")()
                halting = dense(unit, read[:, 0], self.dtype).astype(jnp.float32)
                said = jnp.concatenate([said, halting], axis=1)
            logits.append(said)
        return jnp.stack(logits, axis=1)


def initial_params(config: DPBertConfig, teacher: Params) -> Params:
    """The teacher's parameters; every exit begins as a copy of its head."""
    params = {name: value for name, value in teacher.items() if name != "head"}
    exits = {f"exit_{i}": teacher["head"] for i in range(config.encoder.num_hidden_layers)}
    return jax.tree.map(np.array, {**params, **exits})


def exit_loss(
    method: Method,
    config: DPBertConfig,
    dtype: DTypeLike,
    params: Params,
    batch: dict[str, Array],
    moment: Moment,
) -> tuple[Array, dict[str, Array]]:
    """One shard's part of the loss of all exits, and sums for the log."""
    row_keys = moment.row_keys(batch["positions"])
    inputs = [batch[name] for name in INPUTS]
    model: Any = EarlyExitBert(config.encoder, dtype)
    frozen = method == "deebert"
    logits = model.apply({"params": params}, *inputs, row_keys, frozen)
    each = jax.vmap(
        lambda x: row_losses(x, batch["labels"], None, config.encoder.problem_type), 1, 1
    )(logits)  # [B, L]
    layers = config.encoder.num_hidden_layers
    if frozen:
        weights = (jnp.arange(layers) < layers - 1).astype(jnp.float32)  # the last is the teacher's
    else:
        depth = jnp.arange(1, layers + 1, dtype=jnp.float32)
        weights = depth / depth.sum()
    loss = jnp.sum(batch["weights"] * (each @ weights)) / moment.total
    rows = batch["weights"].sum()
    return loss, {
        "loss": loss,
        "rows": rows,
        "layers": rows * layers,
        **score_sums(logits[:, -1], batch["labels"], batch["weights"], config.encoder.problem_type),
    }


def train_exits(run: Run, method: Method) -> Path:
    """Trains a method's exits; leaves their weights in the run's folder of baselines."""
    config = run.teacher.config
    params = initial_params(config, run.teacher.params)
    loss = partial(exit_loss, method, config, compute_dtype(run.args.bf16))
    params = fit(run, method, loss, config, params, None)
    if method == "deebert":  # weight decay must not have moved what was frozen
        last = f"exit_{config.encoder.num_hidden_layers - 1}"
        exits = {k: v for k, v in params.items() if k.startswith("exit_") and k != last}
        params = {**initial_params(config, run.teacher.params), **exits}
    return save_exits(run.folder / BASELINES / method, params)


def save_exits(folder: Path, params: Params) -> Path:
    """Leaves weights where `load_exits` finds them."""
    folder.mkdir(parents=True, exist_ok=True)
    flat = {"/".join(path): np.asarray(leaf) for path, leaf in flatten_dict(params).items()}
    put_weights(folder, flat)
    return folder


def load_exits(folder: Path) -> Params:
    """What `save_exits` left in a folder; other bytes than those are refused."""
    verify(folder)
    flat = load_file(str(folder / WEIGHTS))
    return unflatten_dict({tuple(name.split("/")): value for name, value in flat.items()})


def exit_logits(
    config: DPBertConfig,
    params: Params,
    split: TokenizedSplit,
    *,
    batch_size: int,
    max_seq_length: int,
) -> Float[np.ndarray, "N L C"]:
    """What every exit says of every row."""
    model: Any = EarlyExitBert(config.encoder)
    program = jax.jit(lambda params, *inputs: model.apply({"params": params}, *inputs))
    shape = (len(split), config.encoder.num_hidden_layers, config.encoder.num_labels)
    logits = np.zeros(shape, np.float32)
    pad = config.encoder.pad_token_id
    for batch in batches(split, batch_size, max_seq_length, pad_token_id=pad):
        real = batch["weights"] > 0
        found = program(params, *(batch[name] for name in INPUTS))
        logits[batch["indices"][real]] = np.asarray(found)[real]
    return logits


def entropy_exits(
    logits: Float[np.ndarray, "N L C"], threshold: float, problem_type: ProblemType = SINGLE_LABEL
) -> Int[np.ndarray, " N"]:
    """DeeBERT: the first layer whose entropy is below the threshold, else the last."""
    sure = np.asarray(entropy(jnp.asarray(logits), problem_type)) < threshold
    sure[:, -1] = True
    return sure.argmax(axis=1)


def patience_exits(
    logits: Float[np.ndarray, "N L C"],
    patience: int,
    tolerance: float | None,
    problem_type: ProblemType = SINGLE_LABEL,
) -> Int[np.ndarray, " N"]:
    """PABEE: the layer at which `patience` answers in a row agreed with the one before.

    `tolerance` is the regression's; None: classes, or sets of labels.
    """
    if tolerance is None:
        answer = answers(logits, problem_type).reshape(*logits.shape[:2], -1)
        agrees = (answer[:, 1:] == answer[:, :-1]).all(axis=2)
    else:
        agrees = np.abs(np.diff(logits[:, :, 0], axis=1)) < tolerance
    count, layers = np.zeros(len(logits), int), logits.shape[1]
    leaves = np.full(len(logits), layers - 1)
    for layer in range(1, layers):
        count = np.where(agrees[:, layer - 1], count + 1, 0)
        leaves = np.where((count >= patience) & (leaves == layers - 1), layer, leaves)
    return leaves
