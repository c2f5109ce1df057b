"""Set before JAX or the library is imported: four devices, no network, checked shapes.

Every annotation of the library is enforced while tests run: jaxtyping hands each function to
beartype. Production pays nothing for it.
"""

import atexit
import csv
import dataclasses
import gc
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

# Tests compile far longer than they compute: less optimised code halves them.
os.environ["XLA_FLAGS"] = (
    "--xla_force_host_platform_device_count=4 --xla_backend_optimization_level=0"
)
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["HF_HUB_OFFLINE"] = "1"
# A run's programs are compiled once for all processes of the session, also xdist's workers, which
# inherit the folder; where DPBERT_JAX_TEST_CACHE names one, once for many sessions: that saves most
# of their time. With a limit JAX takes a lock: without, one may read what is half written.
os.environ["JAX_COMPILATION_CACHE_MAX_SIZE"] = str(2**33)
if "PYTEST_XDIST_WORKER" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = os.environ.get(
        "DPBERT_JAX_TEST_CACHE"
    ) or tempfile.mkdtemp(prefix="dpbert_jax_tests")
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.3"
# Nothing is read from, or left in, the tokenised splits of whoever runs the tests.
os.environ["DPBERT_JAX_CACHE"] = tempfile.mkdtemp(prefix="dpbert_jax_tokenized")

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import install_import_hook

atexit.register(shutil.rmtree, os.environ["DPBERT_JAX_CACHE"], ignore_errors=True)
if not {"DPBERT_JAX_TEST_CACHE", "PYTEST_XDIST_WORKER"} & set(os.environ):
    cache = os.environ["JAX_COMPILATION_CACHE_DIR"]
    atexit.register(shutil.rmtree, cache, ignore_errors=True)
install_import_hook("dpbert_jax", "beartype.beartype")
# A dimension that appears silently is a bug that still computes something.
jax.config.update("jax_numpy_rank_promotion", "raise")

VOCABULARY = "the a cat dog sat ran on mat in sun and it was film walk good bad"


MOST_MAPPINGS = 20_000  # Linux has 65,530 for a process, and XLA aborts where they are spent


@pytest.fixture(scope="module", autouse=True)
def compiled_programs_are_let_go():
    """Each has memory mappings of its own, and a session compiles many thousands."""
    yield
    mappings = Path("/proc/self/maps")
    if mappings.exists() and len(mappings.read_bytes().splitlines()) > MOST_MAPPINGS:
        jax.clear_caches()
        gc.collect()


@pytest.fixture(scope="session")
def random_params() -> Callable:
    """Parameters for a config, drawn large: with BERT's own initial 0.02 every plan looks alike."""
    from dpbert_jax.policies.dpbert import init_params

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


@pytest.fixture(scope="session")
def random_split():
    """A function (rows, longest) -> a split whose first token of a row is the row's number."""

    def draw(rows, longest=16, seed=0):
        from dpbert_jax.data import TokenizedSplit

        random = np.random.default_rng(seed)
        lengths = random.integers(3, longest + 1, rows)
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        token_ids = random.integers(1, 64, offsets[-1], np.int32)
        token_ids[offsets[:-1]] = np.arange(rows)
        type_ids = random.integers(0, 2, offsets[-1]).astype(np.int8)
        return TokenizedSplit(token_ids, type_ids, offsets, random.integers(0, 2, rows, np.int32))

    return draw


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pretrained BERT without a classifier: the tiny preset, cut to three layers."""
    from safetensors.numpy import load_file, save_file
    from transformers import BertTokenizer

    from dpbert_jax.config import TINY, DPBertConfig
    from dpbert_jax.hub import save_folder
    from dpbert_jax.policies.dpbert import init_params

    folder = tmp_path_factory.mktemp("pretrained")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *VOCABULARY.split()]
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    config = DPBertConfig(dataclasses.replace(TINY, num_hidden_layers=3))
    save_folder(folder, config, init_params(config, 0), BertTokenizer(str(folder / "vocab.txt")))
    weights = folder / "model.safetensors"
    backbone = {k: v for k, v in load_file(weights).items() if not k.startswith("classifier")}
    save_file(backbone, weights, metadata={"format": "pt"})
    (folder / "SHA256SUMS").unlink()  # as published models come
    return folder


@pytest.fixture(scope="session")
def sentence_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, str]]:
    """Flags that name small csv files: 60 rows to train on and 20 to score, classes or scores."""
    folder = tmp_path_factory.mktemp("sentences")
    random = np.random.default_rng(0)
    files = {}
    for kind in ("classes", "scores"):
        files[kind] = {}
        for split, rows in (("train", 60), ("validation", 20)):
            path = folder / f"{kind}_{split}.csv"
            with path.open("w", newline="") as file:
                writer = csv.writer(file)
                writer.writerow(["sentence", "label"])
                for row in range(rows):
                    words = random.choice(VOCABULARY.split(), random.integers(3, 9)).tolist()
                    words.append(("good", "bad")[row % 2])
                    classes = ("positive", "negative")[row % 2]
                    label = classes if kind == "classes" else 4.5 - 3.1 * (row % 2) + row % 3 / 4
                    writer.writerow([" ".join(words), label])
            files[kind][f"{split}_file"] = str(path)
    return files


@pytest.fixture(scope="session")
def run_flags(tiny_folder: Path, sentence_files: dict[str, dict[str, str]]) -> dict[str, object]:
    """Flags of a whole run in 16 steps: eight of the dense stage, four of either other one."""
    return {
        "model_name_or_path": str(tiny_folder),
        **sentence_files["classes"],
        "max_seq_length": 16,
        "per_device_train_batch_size": 2,
        "learning_rate": 1e-3,
        "num_train_epochs": 2.0,
        "num_planner_epochs": 1.0,
        "logging_steps": 1,
        "save_steps": 3,
    }


@pytest.fixture(scope="session")
def trained() -> Callable[[Path, dict[str, object]], Path]:
    """A function (folder, flags) -> the folder, with a run of these flags in it."""
    from dpbert_jax.training.arguments import TrainArguments
    from dpbert_jax.training.run import train

    def run(folder: Path, flags: dict[str, object]) -> Path:
        train(TrainArguments(output_dir=str(folder), **flags))
        return folder

    return run


@pytest.fixture(scope="session")
def tiny_run(
    trained: Callable, run_flags: dict[str, object], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The folder of that run; not to be changed."""
    return trained(tmp_path_factory.mktemp("runs") / "tiny", run_flags)


@pytest.fixture(scope="session")
def steady_flags(run_flags: dict[str, object]) -> dict[str, object]:
    """Flags of a run that other devices can be held to.

    The refit whitens what the planner reads. Where inputs hardly differ, as the tiny model's do,
    rounding then decides on which side of its threshold a gate falls.
    """
    return {**run_flags, "refit_planner": False}


@pytest.fixture(scope="session")
def steady_run(
    trained: Callable, steady_flags: dict[str, object], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The folder of that run; not to be changed."""
    return trained(tmp_path_factory.mktemp("runs") / "steady", steady_flags)
