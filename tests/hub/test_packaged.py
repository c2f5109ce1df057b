"""MPNet-base from the package index: what is missing is named, what is there is PyTorch's."""

from functools import partial
from importlib.metadata import PackageNotFoundError, distribution
from zipfile import ZipFile

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dpbert_jax.config import DPBertConfig, PlannerConfig
from dpbert_jax.config_file import read_config
from dpbert_jax.errors import UserError
from dpbert_jax.hub import load_params, load_tokenizer, packaged, resolve_folder
from dpbert_jax.policies.dpbert import DPBert

SENTENCES = [
    "The plan is complete before the first planned layer runs.",
    "Cheap.",
    "Der schnelle braune Fuchs springt über den faulen Hund! 42 %" * 12,
]


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(packaged, "CACHE", str(tmp_path))
    return tmp_path


def test_missing_packages_are_named_with_the_way_to_get_them(cache, monkeypatch):
    def absent(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr(packaged, "distribution", absent)
    with pytest.raises(UserError) as error:
        resolve_folder("mpnet")
    for name in (*packaged.MPNET_PACKAGES, "make mpnet"):
        assert name in str(error.value)


def test_other_weights_than_the_published_are_refused_and_nothing_is_kept(cache, monkeypatch):
    with ZipFile(cache / "whole.zip", "w") as archive:
        archive.writestr(f"{packaged.MPNET}/model.safetensors", b"others")
        archive.writestr(f"{packaged.MPNET}/config.json", b"{}")
    whole = (cache / "whole.zip").read_bytes()
    pieces = [cache / "first", cache / "second"]
    for piece, part in zip(pieces, (whole[:99], whole[99:]), strict=True):
        piece.write_bytes(part)
    monkeypatch.setattr(packaged, "_mpnet_pieces", lambda: pieces)
    with pytest.raises(UserError, match=f"must have {packaged.MPNET_WEIGHTS}"):
        resolve_folder("mpnet")
    assert {path.name for path in cache.iterdir()} == {"whole.zip", "first", "second"}


@pytest.mark.slow
def test_mpnet_is_pytorchs():
    """Twelve layers, 768 wide; states reach 10."""
    torch = pytest.importorskip("torch")
    try:
        distribution(packaged.MPNET_PACKAGES[0])
    except PackageNotFoundError:
        pytest.skip("the packaged MPNet is not installed (make mpnet)")
    from transformers import AutoModel

    folder = resolve_folder("mpnet")
    tokens = load_tokenizer(folder)(SENTENCES, padding=True, return_tensors="np")
    reference = AutoModel.from_pretrained(folder, attn_implementation="eager").eval()
    with torch.no_grad():
        tensors = {name: torch.from_numpy(value) for name, value in tokens.items()}
        wanted = reference(**tensors, output_hidden_states=True).hidden_states
    config = DPBertConfig(read_config(folder).encoder, PlannerConfig(stem_layers=0))
    params = load_params(folder, config, fresh=("planner", "head"))
    apply = partial(DPBert(config).apply, {"params": params})
    ids, mask = (np.int32(tokens[name]) for name in ("input_ids", "attention_mask"))
    first = jax.jit(partial(apply, method="stem"))(ids, mask, np.zeros_like(ids))
    gates = jnp.ones((len(ids), config.num_gates))
    states = [first, *jax.jit(partial(apply, method="encode"))(first, mask, gates)]
    for ours, theirs in zip(states, wanted, strict=True):
        ours, theirs = np.asarray(ours)[mask > 0], theirs.numpy()[mask > 0]
        print(f"largest difference {np.abs(ours - theirs).max():.1e} of {np.abs(theirs).max():.1f}")
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5)
