"""A folder from anywhere: nothing in it is executed, and nothing outside it is read."""

import ast
import json
import pickle
import shutil
from pathlib import Path

import pytest
from safetensors.numpy import load_file, save_file
from transformers import BertTokenizer

from dpbert_jax.config import TINY, DPBertConfig
from dpbert_jax.errors import UserError
from dpbert_jax.hub import load_params, load_run, load_tokenizer, save_folder

ROOT = Path(__file__).parents[2]
SOURCES = [*(ROOT / "dpbert_jax").rglob("*.py"), *ROOT.glob("*.py")]
CONFIG = DPBertConfig(TINY)
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "bad"]
# They load code that this library has written itself, checked against its own sums or in a
# temporary folder of this very process.
OWN_CODE = {"export/torch_format.py", "benchmark/exports.py"}


@pytest.fixture
def folder(tmp_path, random_params):
    """A model without checksums, and beside it things that it must not reach."""
    tokenizer = BertTokenizer(vocab={word: i for i, word in enumerate(WORDS)})
    save_folder(tmp_path / "model", CONFIG, random_params(CONFIG), tokenizer)
    (tmp_path / "model" / "SHA256SUMS").unlink()
    shutil.copy(tmp_path / "model" / "model.safetensors", tmp_path / "outside.safetensors")
    (tmp_path / "vocab.txt").write_text("\n".join([*WORDS[:5], "secret"]) + "\n")
    shutil.copy(tmp_path / "model" / "tokenizer.json", tmp_path / "tokenizer.4.0.json")
    return tmp_path / "model"


def edit(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


class Bomb:
    """Unpickling it leaves a file behind."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return (Path.touch, (self.marker,))


def test_pickled_weights_are_not_unpickled(folder, tmp_path):
    marker = tmp_path / "marker"
    (folder / "model.safetensors").unlink()
    for name in ("pytorch_model.bin", "model.pt", "flax_model.msgpack"):
        (folder / name).write_bytes(pickle.dumps(Bomb(marker)))
    with pytest.raises(UserError, match="pickled code and never loaded"):
        load_run(str(folder))
    # Nor under the name of the weights.
    (folder / "pytorch_model.bin").rename(folder / "model.safetensors")
    with pytest.raises(UserError, match=r"model\.safetensors is damaged"):
        load_run(str(folder))
    assert not marker.exists()
    pickle.loads(pickle.dumps(Bomb(marker)))  # it would have shown
    assert marker.exists()


@pytest.mark.parametrize("known", [True, False], ids=["known_class", "own_class"])
@pytest.mark.parametrize("files", ["tokenizer.json", "vocab.txt"])
def test_a_tokenizers_own_code_is_not_run(known, files, folder, tmp_path, monkeypatch):
    marker = tmp_path / "marker"
    code = f"from pathlib import Path\nPath({str(marker)!r}).touch()\nclass Evil: pass\n"
    (folder / "evil.py").write_text(code)
    auto_map = {"AutoTokenizer": ["evil.Evil", "evil.Evil"], "AutoConfig": "evil.Evil"}
    edit(folder / "config.json", auto_map=auto_map)
    own = {} if known else {"tokenizer_class": "Evil"}
    edit(folder / "tokenizer_config.json", auto_map=auto_map, **own)
    if files == "vocab.txt":
        (folder / "tokenizer.json").unlink()
        (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    # transformers would ask at the terminal whether to run it: no answer may be needed.
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("it asked"))
    try:
        load_run(str(folder))
    except UserError as error:
        assert not known and "holds no tokenizer that can be loaded" in str(error)
    assert not marker.exists()


@pytest.mark.parametrize("name", ["../outside.safetensors", "{absolute}", "sub/../x", ".."])
def test_shards_outside_the_folder_are_refused(name, folder, tmp_path):
    name = name.format(absolute=tmp_path / "outside.safetensors")
    tensors = load_file(tmp_path / "outside.safetensors")
    # Its last part is a file of the folder: that one must not stand in for it.
    save_file(tensors, folder / "outside.safetensors")
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": dict.fromkeys(tensors, name)}))
    with pytest.raises(UserError, match=r"index\.json names the file .* nothing outside"):
        load_params(folder, CONFIG)
    index.write_text(json.dumps({"weight_map": dict.fromkeys(tensors, "outside.safetensors")}))
    load_params(folder, CONFIG)


@pytest.mark.parametrize(
    "entry",
    [
        {"vocab": "{outside}/vocab.txt"},
        {"vocab_file": "../vocab.txt"},
        {"tokenizer_file": "{outside}/tokenizer.4.0.json"},
        {"fast_tokenizer_files": ["../tokenizer.4.0.json"]},
    ],
    ids=lambda entry: next(iter(entry)),
)
def test_a_tokenizer_reads_no_file_outside_the_folder(entry, folder, tmp_path):
    text = json.dumps(entry).replace("{outside}", str(tmp_path))
    edit(folder / "tokenizer_config.json", **json.loads(text))
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    with pytest.raises(UserError, match=r"tokenizer_config\.json names the file .* nothing out"):
        load_tokenizer(folder)


def test_a_file_of_the_machine_that_made_a_model_is_no_obstacle(folder):
    edit(folder / "tokenizer_config.json", tokenizer_file="/elsewhere/cache/tokenizer.json")
    assert "secret" not in load_tokenizer(folder).get_vocab()


def test_the_library_never_unpickles_and_trusts_only_its_own_code():
    banned = {"pickle", "dill", "joblib", "shelve", "marshal", "cloudpickle"}
    trusting = set()
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                assert banned.isdisjoint(alias.name for alias in node.names), path
            elif isinstance(node, ast.ImportFrom):
                assert node.module not in banned, path
            elif isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                assert called not in ("eval", "exec", "torch.load"), path
                given = {k.arg: ast.unparse(k.value) for k in node.keywords}
                assert given.get("allow_pickle", "False") == "False", path
                if given.get("trust_remote_code", "False") != "False":
                    trusting.add(path.relative_to(ROOT / "dpbert_jax").as_posix())
    assert trusting == OWN_CODE
