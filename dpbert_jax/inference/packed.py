"""The executor `packed`: the host reads the plan once, and each layer runs on what needs it only.

The batch may be of any size and its rows of any lengths: every layer's rows are packed into tiles
without padding between them (`inference.tiles`), so that a batch of several hundred unsorted rows
costs little more than its real tokens times the layers that they run. The jitted layer takes its
weights as an argument: it is compiled once for each number of tiles and serves all layers.
"""

from collections.abc import Callable, Iterator, Mapping
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from dpbert_jax.config import DPBertConfig, EncoderConfig
from dpbert_jax.encoder.inference_layer import LayerWeights, run_layer
from dpbert_jax.inference.path import Weights, classify, decide, embed
from dpbert_jax.inference.tiles import Tiles, make_tiles, split_tiles, tile_width
from dpbert_jax.policies.dpbert import DPBertOutput
from dpbert_jax.policies.gates import layer_mask_of
from dpbert_jax.policies.rule import Rule

# Tokens in the largest piece: more leave a CPU's caches, fewer leave an accelerator idle.
PIECE_TOKENS = {"cpu": 1024, "gpu": 8192, "tpu": 8192}
CHUNK_ROWS = 512  # of a dataset at once: enough to fill the tiles, few enough for memory


def run_tiles(
    config: EncoderConfig,
    weights: LayerWeights,
    states: Float[Array, "T D"],
    tokens: Int[Array, "N W"],
    rows: Int[Array, "N W"],
) -> Float[Array, "T D"]:
    """One layer on the tokens of some tiles; all other tokens keep their state.

    A token attends to the tokens of its own row.
    """
    tiles = states.at[tokens].get(mode="fill", fill_value=0)  # [N, W, D]
    alien = rows[:, None, :, None] != rows[:, None, None, :]
    bias = jnp.where(alien, jnp.finfo(jnp.float32).min, 0.0)  # [N, 1, W, W]
    output = run_layer(config, weights, tiles.transpose(2, 0, 1), bias)
    # The position of an empty slot is out of range: its output is dropped.
    return states.at[tokens].set(output.transpose(1, 2, 0), mode="drop")


def make_packed(
    config: DPBertConfig, weights: Weights, dtype: DTypeLike, piece_tokens: int
) -> Callable[[Mapping[str, np.ndarray], Rule, np.ndarray], DPBertOutput]:
    """A function (batch, rule, forced) -> output.

    The first batch of a shape [B, S] fixes the width of its tiles, and compiles the layer for
    every number of tiles that a later batch of that shape can need.
    """
    layer = jax.jit(partial(run_tiles, config.encoder), donate_argnums=1)
    widths: dict[tuple[int, int], int] = {}

    @partial(jax.jit, static_argnums=0)
    def empty(size: int) -> Array:
        return jnp.zeros((size, config.encoder.hidden_size), dtype)

    @partial(jax.jit, donate_argnums=1)
    def embed_tiles(
        weights: Weights, states: Array, tokens: Array, ids: Array, types: Array, positions: Array
    ) -> Array:
        output = embed(config, dtype, weights, ids, types, positions)
        return states.at[tokens].set(output, mode="drop")

    @jax.jit
    def plan(
        weights: Weights, states: Array, attention_mask: Array, rule: Rule, forced: Array
    ) -> tuple[Array, Array]:
        states = states.reshape(*attention_mask.shape, -1)
        return decide(config, weights, states, attention_mask, rule, forced)

    @partial(jax.jit, static_argnums=2)
    def finish(weights: Weights, states: Array, rows: int) -> Array:
        return classify(config, dtype, weights, states.reshape(rows, -1, states.shape[-1])[:, 0])

    def largest_piece(width: int) -> int:
        return 1 << (max(piece_tokens // width, 1).bit_length() - 1)

    def compile_shape(mask: np.ndarray) -> None:
        """Runs embeddings and layer for every size of a piece, on no token at all."""
        width = widths[mask.shape] = tile_width(config.encoder, mask.sum(axis=1), mask.shape[1])
        states, size = empty(mask.size), largest_piece(width)
        while size:
            nothing = np.full((size, width), mask.size, np.int32)
            zeros = np.zeros_like(nothing)
            states = embed_tiles(weights, states, nothing, zeros, zeros, zeros)
            states = layer(weights.layers[0], states, nothing, zeros - 1)
            size //= 2

    def pieces(tiles: Tiles) -> Iterator[slice]:
        start = 0
        for size in split_tiles(len(tiles.tokens), largest_piece(tiles.tokens.shape[1])):
            yield slice(start, start + size)
            start += size

    def run(weights: LayerWeights, states: Array, tiles: Tiles) -> Array:
        for piece in pieces(tiles):
            states = layer(weights, states, tiles.tokens[piece], tiles.rows[piece])
        return states

    def begin(batch: Mapping[str, np.ndarray], tiles: Tiles) -> Array:
        """Embeddings of the real tokens; what is padding stays zero."""
        size, length = batch["input_ids"].size, batch["input_ids"].shape[1]
        at = np.minimum(tiles.tokens, size - 1)  # an empty slot computes something, and drops it
        ids, types = (batch[name].ravel()[at] for name in ("input_ids", "token_type_ids"))
        positions = at % length
        states = empty(size)
        for p in pieces(tiles):
            states = embed_tiles(weights, states, tiles.tokens[p], ids[p], types[p], positions[p])
        return states

    def execute(batch: Mapping[str, np.ndarray], rule: Rule, forced: np.ndarray) -> DPBertOutput:
        batch = {name: np.asarray(array, np.int32) for name, array in batch.items()}
        mask = batch["attention_mask"]
        if mask.shape not in widths:
            compile_shape(mask)
        width = widths[mask.shape]
        every = make_tiles(mask, np.arange(len(mask)), width)
        states = begin(batch, every)
        for layer_weights in weights.layers[: config.stem_layers]:
            states = run(layer_weights, states, every)
        gates, gate_logits = plan(weights, states, mask, rule, forced)
        needed = np.asarray(gates) > 0  # the one time that the host waits for the device
        known: dict[bytes, Tiles] = {}
        for i, layer_weights in enumerate(weights.layers[config.stem_layers :]):
            rows = np.flatnonzero(needed[:, i])
            if not len(rows):
                continue
            key = rows.tobytes()  # many layers are run by the same rows
            if key not in known:
                known[key] = make_tiles(mask, rows, width)
            states = run(layer_weights, states, known[key])
        logits = finish(weights, states, len(mask))
        return DPBertOutput(logits, layer_mask_of(gates, config.stem_layers), gate_logits)

    return execute
