"""Packing rows of unlike length into tiles of equal width, so that next to no padding is computed.

A tile holds the tokens of several rows one after the other; attention stays within a row. This is
bin packing by the largest row that still fits: with hundreds of rows, tiles are full to a few
percent. Source of the idea: Krell et al., "Efficient Sequence Packing without Cross-contamination",
2107.02027.
"""

from typing import NamedTuple

import numpy as np

from dpbert_jax.config import EncoderConfig
from dpbert_jax.encoder.flops import layer_flops, projection_flops

ALIGNMENT = 16  # float32 values in a vector register: an odd width costs more than it saves
WIDTHS = (16, 32, 48, 64, 96, 128)
# Scores, softmax and context take four times as long an operation as the dense products do
# (measured on CPU for hidden sizes 384 and 768 and widths 16 to 128).
ATTENTION_WEIGHT = 4.0


class Tiles(NamedTuple):
    """N tiles of W slots: which token sits in a slot, and of which row it is."""

    tokens: np.ndarray  # int32 [N, W], position in the batch's B * S tokens; B * S for no token
    rows: np.ndarray  # int32 [N, W], row in the batch; -1 for no token


def fill_tiles(lengths: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray, int]:
    """Puts rows of these lengths into tiles: each row's tile and offset, and how many tiles.

    No row may be longer than the tiles are wide.
    """
    waiting: list[list[int]] = [[] for _ in range(width + 1)]
    for row, length in enumerate(lengths.tolist()):
        waiting[length].append(row)
    present = np.zeros(width + 1, bool)
    present[lengths] = True
    tile, offset = np.zeros((2, len(lengths)), np.int64)
    left, used = len(lengths), 0
    while left:
        free = width
        while True:
            fitting = np.flatnonzero(present[: free + 1])
            if not len(fitting):
                break
            length = int(fitting[-1])
            row = waiting[length].pop()
            present[length] = bool(waiting[length])
            tile[row], offset[row] = used, width - free
            free -= length
            left -= 1
        used += 1
    return tile, offset, used


def make_tiles(attention_mask: np.ndarray, rows: np.ndarray, width: int) -> Tiles:
    """Tiles of the real tokens of some rows of a batch; `attention_mask` is [B, S], rows [R]."""
    mask = attention_mask[rows] > 0
    lengths = mask.sum(axis=1)
    tile, offset, count = fill_tiles(lengths, width)
    of_row, position = np.nonzero(mask)  # every token, row by row
    first = np.cumsum(lengths) - lengths
    slot = tile[of_row] * width + offset[of_row] + np.arange(len(of_row)) - first[of_row]
    tokens = np.full(count * width, attention_mask.size, np.int32)
    owner = np.full(count * width, -1, np.int32)
    tokens[slot] = rows[of_row] * attention_mask.shape[1] + position
    owner[slot] = rows[of_row]
    return Tiles(tokens.reshape(count, width), owner.reshape(count, width))


def tile_width(config: EncoderConfig, lengths: np.ndarray, sequence_length: int) -> int:
    """The width at which tiles of these rows cost least.

    At least `sequence_length`, so that any other row of that batch shape fits as well.
    """
    narrowest = -(-sequence_length // ALIGNMENT) * ALIGNMENT
    widths = [width for width in WIDTHS if width > narrowest]

    def cost(width: int) -> float:
        tiles = fill_tiles(lengths, width)[2]
        dense, every = projection_flops(config, width), layer_flops(config, width)
        return float(tiles * (dense + ATTENTION_WEIGHT * (every - dense)))

    return min([narrowest, *widths], key=cost)


def narrower_widths(sequence_length: int, widest: int) -> list[int]:
    """Widths of tiles for rows that have lost tokens: quarters of a row, and the widest.

    A tile's scores are computed between all its slots: a short row is dear in a wide one.
    """
    quarters = (sequence_length * part / 4 for part in range(1, 4))
    aligned = {-(-int(np.ceil(length)) // ALIGNMENT) * ALIGNMENT for length in quarters}
    return [*sorted(width for width in aligned if width < widest), widest]


def split_tiles(count: int, largest: int) -> list[int]:
    """Sizes of the pieces that `count` tiles are run in: full ones, then falling powers of two.

    Nothing is rounded up, and there are few sizes to compile for.
    """
    pieces = [largest] * (count // largest)
    size = largest // 2
    while size:
        if count % (2 * size) >= size:
            pieces.append(size)
        size //= 2
    return pieces
