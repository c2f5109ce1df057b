"""Set before JAX or the library is imported: four devices, no network, checked shapes.

Every annotation of the library is enforced while tests run: jaxtyping hands each function to
beartype. Production pays nothing for it.
"""

import os
from collections.abc import Callable

# Tests compile far longer than they compute: less optimised code halves them.
os.environ["XLA_FLAGS"] = (
    "--xla_force_host_platform_device_count=4 --xla_backend_optimization_level=0"
)
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["HF_HUB_OFFLINE"] = "1"

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import install_import_hook

install_import_hook("dpbert_jax", "beartype.beartype")
# A dimension that appears silently is a bug that still computes something.
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture(scope="session")
def random_params() -> Callable:
    """Parameters for a config, drawn large: with BERT's own initial 0.02 every plan looks alike."""
    from dpbert_jax.model import init_params

    def draw(config, seed=0):
        random = np.random.default_rng(seed)
        shapes = flatten_dict(jax.eval_shape(lambda: init_params(config, 0)))
        drawn = {
            path: jnp.asarray(
                (path[-1] == "scale") + 0.3 * random.standard_normal(leaf.shape, np.float32)
            )
            for path, leaf in shapes.items()
        }
        return unflatten_dict(drawn)

    return draw


@pytest.fixture(scope="session")
def random_batch() -> Callable:
    """Token ids for the tiny preset, rows of different lengths, two segments."""

    def draw(rows, length=8, seed=0):
        random = np.random.default_rng(seed)
        lengths = random.integers(2, length + 1, (rows, 1))
        positions = np.arange(length)[None]
        return {
            "input_ids": random.integers(1, 64, (rows, length), np.int32),
            "attention_mask": (positions < lengths).astype(np.int32),
            "token_type_ids": (positions >= lengths // 2).astype(np.int32),
        }

    return draw
