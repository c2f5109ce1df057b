"""The executor `packed`: the host reads the plan, and each layer runs on what needs it only.

The batch may be of any size and its rows of any lengths: every layer's rows are packed into tiles
without padding between them (`inference.tiles`), so that a batch of several hundred unsorted rows
costs little more than its real tokens times the layers that they run. The jitted layer takes its
weights as an argument: it is compiled once for each number of tiles and serves all layers.
"""

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from dpbert_jax.config import DPBertConfig, EncoderConfig
from dpbert_jax.encoder.attention import relative_bias
from dpbert_jax.encoder.embeddings import embed, positions_of
from dpbert_jax.encoder.inference_layer import LayerAdapters, LayerWeights, run_layer
from dpbert_jax.encoder.operations import Params
from dpbert_jax.inference.path import Output, Weights, output_of, segments, stem_of
from dpbert_jax.inference.tiles import Tiles, make_tiles, narrower_widths, split_tiles, tile_width
from dpbert_jax.policies.protocol import Policy, TokenPolicy
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
    relative: Params,
    *of_depths: Any,
) -> Float[Array, "T D"]:
    """One layer on the tokens of some tiles; all other tokens keep their state.

    A token attends to the tokens of its own row, which lie side by side: so a bias by distance is
    that of the places in the tile.

    `of_depths` are the layer's adapters of every depth, and the slot [1] of all these rows' plans,
    where they have any.
    """
    tiles = states.at[tokens].get(mode="fill", fill_value=0)  # [N, W, D]
    alien = rows[:, None, :, None] != rows[:, None, None, :]
    own: Any = 0.0
    if config.family.relative_attention:
        own = relative_bias(config, relative, tokens.shape[1])
    bias = jnp.where(alien, jnp.finfo(jnp.float32).min, own)  # [N, 1 or H, W, W]
    own = [jax.tree.map(lambda array: array[of_depths[1]], of_depths[0])] if of_depths else []
    output = run_layer(config, weights, tiles.transpose(2, 0, 1), bias, *own)
    # The position of an empty slot is out of range: its output is dropped.
    return states.at[tokens].set(output.transpose(1, 2, 0), mode="drop")


class Packed:
    """A function (batch, rule, forced) -> output.

    The first batch of a shape [B, S] fixes the width of its tiles, and compiles the layer for
    every number of tiles that a later batch of that shape can need. Where a policy drops tokens
    there are narrower ones as well, for rows that have become short.
    """

    def __init__(
        self,
        config: DPBertConfig,
        policy: Policy,
        weights: Weights,
        dtype: DTypeLike,
        piece_tokens: int,
    ) -> None:
        self._config, self._policy, self._weights = config, policy, weights
        self._piece_tokens = piece_tokens
        self._widths: dict[tuple[int, int], list[int]] = {}  # of tiles, by the batch's shape
        encoder = config.encoder

        def embed_tiles(
            weights: Params, states: Array, tokens: Array, ids: Array, types: Array, places: Array
        ) -> Array:
            output = embed(encoder, weights, ids, types, dtype, position_ids=places)
            return states.at[tokens].set(output, mode="drop")

        def look(number: int, weights: Params, states: Array, mask: Array, *about: Any) -> Any:
            rows = states.reshape(*mask.shape, -1)
            return policy.look(number, weights, rows, mask, *about)

        def finish(rows: int, policy_weights: Params, head: Params, states: Array, carry: Any):
            first = states.reshape(rows, -1, states.shape[-1])[:, 0]
            return policy.finish(policy_weights, head, first, dtype, carry)

        self._empty = jax.jit(
            lambda size: jnp.zeros((size, encoder.hidden_size), dtype), static_argnums=0
        )
        self._embed = jax.jit(embed_tiles, donate_argnums=1)
        self._layer = jax.jit(partial(run_tiles, encoder), donate_argnums=1)
        self._begin = jax.jit(policy.begin, static_argnums=0)
        self._look = jax.jit(look, static_argnums=0)
        self._finish = jax.jit(finish, static_argnums=0)
        self._drops = isinstance(policy, TokenPolicy)
        if isinstance(policy, TokenPolicy):

            def select(
                number: int, weights: Params, states: Array, mask: Array, rule: Rule
            ) -> Array:
                rows = states.reshape(*mask.shape, -1)
                return policy.select(number, weights, rows, mask, rule)

            self._select = jax.jit(select, static_argnums=0)

    def __call__(self, batch: Mapping[str, np.ndarray], rule: Rule, forced: np.ndarray) -> Output:
        batch = {name: np.asarray(array, np.int32) for name, array in batch.items()}
        mask, weights = batch["attention_mask"], self._weights
        if mask.shape not in self._widths:
            self._compile_shape(mask)
        widths, rows = self._widths[mask.shape], np.arange(len(mask))
        tiles = TilesByRows(mask, widths[-1:])
        every = tiles.of(rows)
        states = self._embedded(batch, every)
        stem = stem_of(self._config, self._policy)
        for layer in weights.layers[:stem]:
            states = self._run(layer, states, every)
        carry, plan = self._begin(len(mask)), [np.ones((len(mask), stem), np.float32)]
        tokens = [np.repeat(mask.sum(axis=1)[:, None], stem, axis=1)]
        for look, first, _, columns in segments(self._config, self._policy):
            about = (mask, rule, forced[:, columns], carry)
            decided, carry = self._look(look, weights.policy, states, *about)
            gates = np.asarray(decided)  # here the host waits for the device
            plan.append(gates)
            slots = self._policy.slots(gates) if self._policy.slots else None
            if self._drops:
                mask = np.asarray(self._select(look, weights.policy, states, mask, rule))
                tiles = TilesByRows(mask, widths)
                tokens.append(np.repeat(mask.sum(axis=1)[:, None], gates.shape[1], axis=1))
            for i, gate in enumerate(gates.T):
                states = self._run_planned(first - stem + i, states, gate, slots, tiles)
        answer = self._finish(len(mask), weights.policy, weights.head, states, carry)
        logits, gate_logits = answer
        kept = jnp.asarray(np.concatenate(tokens, axis=1)) if self._drops else None
        return output_of(logits, jnp.asarray(np.concatenate(plan, axis=1)), gate_logits, kept)

    def _embedded(self, batch: Mapping[str, np.ndarray], every: list[Tiles]) -> Array:
        """Embeddings of the real tokens; what is padding stays zero."""
        ids, (tiles,) = batch["input_ids"], every
        at = np.minimum(tiles.tokens, ids.size - 1)  # an empty slot computes something: dropped
        places = np.broadcast_to(positions_of(self._config.encoder, ids), ids.shape)
        about = [array.ravel()[at] for array in (ids, batch["token_type_ids"], places)]
        states = self._empty(ids.size)
        for p in self._pieces(tiles):
            inputs = (tiles.tokens[p], *(array[p] for array in about))
            states = self._embed(self._weights.embeddings, states, *inputs)
        return states

    def _run_planned(
        self,
        number: int,
        states: Array,
        gate: np.ndarray,
        slots: np.ndarray | None,
        tiles: "TilesByRows",
    ) -> Array:
        """A planned layer, counted from 0, on the rows that need it, those of a depth together."""
        layer = self._weights.layers[stem_of(self._config, self._policy) + number]
        needed = gate > 0
        if slots is not None:
            adapters = self._weights.adapters[number]
            adapted = needed & (slots < len(adapters.output_scale) - 1)
            for slot in np.unique(slots[adapted]):
                made = tiles.of(np.flatnonzero(adapted & (slots == slot)))
                states = self._run(layer, states, made, adapters, np.full(1, slot, np.int32))
            needed &= ~adapted
        rows = np.flatnonzero(needed)
        return self._run(layer, states, tiles.of(rows)) if len(rows) else states

    def _run(
        self,
        layer: LayerWeights,
        states: Array,
        by_width: list[Tiles],
        *of_depths: LayerAdapters | np.ndarray,
    ) -> Array:
        for tiles in by_width:
            for p in self._pieces(tiles):
                tile = (tiles.tokens[p], tiles.rows[p])
                states = self._layer(layer, states, *tile, self._weights.relative, *of_depths)
        return states

    def _pieces(self, tiles: Tiles) -> Iterator[slice]:
        start = 0
        for size in split_tiles(len(tiles.tokens), self._largest_piece(tiles.tokens.shape[1])):
            yield slice(start, start + size)
            start += size

    def _largest_piece(self, width: int) -> int:
        return 1 << (max(self._piece_tokens // width, 1).bit_length() - 1)

    def _compile_shape(self, mask: np.ndarray) -> None:
        """Runs embeddings and layer for every size of a piece, on no token at all."""
        widest = tile_width(self._config.encoder, mask.sum(axis=1), mask.shape[1])
        widths = narrower_widths(mask.shape[1], widest) if self._drops else [widest]
        self._widths[mask.shape] = widths
        weights, states = self._weights, self._empty(mask.size)
        for width in widths:
            size = self._largest_piece(width)
            while size:
                nothing = np.full((size, width), mask.size, np.int32)
                zeros = np.zeros_like(nothing)
                if width == widest:
                    states = self._embed(weights.embeddings, states, nothing, zeros, zeros, zeros)
                about = (nothing, zeros - 1, weights.relative)
                states = self._layer(weights.layers[0], states, *about)
                if self._policy.slots:
                    own = (weights.adapters[0], np.zeros(1, np.int32))
                    states = self._layer(weights.layers[0], states, *about, *own)
                size //= 2


class TilesByRows:
    """Tiles of a batch's rows, each set of rows packed once: many layers are run by the same.

    Rows are in tiles of the narrowest of the `widths`, ascending, that holds them.
    """

    def __init__(self, attention_mask: np.ndarray, widths: list[int]) -> None:
        self._mask, self._widths = attention_mask, widths
        self._width_of = np.searchsorted(widths, (attention_mask > 0).sum(axis=1))
        self._known: dict[bytes, list[Tiles]] = {}

    def of(self, rows: np.ndarray) -> list[Tiles]:
        key = rows.tobytes()
        if key not in self._known:
            by_width = [(w, rows[self._width_of[rows] == n]) for n, w in enumerate(self._widths)]
            made = [make_tiles(self._mask, those, w) for w, those in by_width if len(those)]
            self._known[key] = made
        return self._known[key]
