"""Tokenizers of folders: their ids against the embedding, and the files of old ones."""

import dataclasses
import json
import shutil
from fnmatch import fnmatch

import pytest

from dpbert_jax.config import DPBertConfig
from dpbert_jax.config_file import read_config, write_config
from dpbert_jax.errors import UserError
from dpbert_jax.hub import load_run, load_tokenizer, resolve_folder, save_folder
from dpbert_jax.training.arguments import TrainArguments
from dpbert_jax.training.run import train


@pytest.fixture
def folder(tiny_folder, tmp_path):
    return shutil.copytree(tiny_folder, tmp_path / "model")


def with_embedding(folder, random_params, rows):
    """The folder as a model whose embedding has so many rows."""
    bert = dataclasses.replace(read_config(folder).encoder, vocab_size=rows)
    config = DPBertConfig(bert)
    save_folder(folder, config, random_params(config), load_tokenizer(folder))
    return folder


def test_ids_beyond_the_embedding_are_refused_where_a_folder_is_loaded(
    folder, random_params, run_flags, tmp_path
):
    tokenizer = load_tokenizer(folder)
    exact = with_embedding(folder, random_params, len(tokenizer))
    load_run(str(exact))
    tokenizer.add_tokens(["xyzzy", "plugh"])
    tokenizer.save_pretrained(str(folder))
    (folder / "SHA256SUMS").unlink()
    size = len(tokenizer)
    wanted = (
        rf"ids go up to {size - 1} \(the token 'plugh'\), but vocab_size .* is {size - 2}, .*"
        rf"2 token\(s\) .*resize_token_embeddings\({size}\)"
    )
    with pytest.raises(UserError, match=wanted):
        load_run(str(folder))
    flags = {**run_flags, "model_name_or_path": str(folder)}
    with pytest.raises(UserError, match=wanted):
        train(TrainArguments(output_dir=str(tmp_path / "run"), **flags))
    assert not (tmp_path / "run").exists()


def test_a_pair_needs_a_second_token_type(folder, run_flags, tmp_path, random_params):
    bert = dataclasses.replace(read_config(folder).encoder, type_vocab_size=1)
    config = DPBertConfig(bert)
    save_folder(folder, config, random_params(config), load_tokenizer(folder))
    flags = {**run_flags, "model_name_or_path": str(folder)}
    for split in ("train_file", "validation_file"):
        path = tmp_path / f"{split}.csv"
        path.write_text("one,two,label\n" + "the cat,a dog,yes\na film,the sun,no\n" * 10)
        flags[split] = str(path)
    with pytest.raises(UserError, match=r"pairs of texts.*type_vocab_size is 1"):
        train(TrainArguments(output_dir=str(tmp_path / "run"), **flags))


def test_the_hub_gives_all_files_of_an_old_tokenizer(folder, tmp_path, monkeypatch):
    words = list(load_tokenizer(folder).get_vocab())
    for path in folder.glob("token*"):
        path.unlink()
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    (folder / "added_tokens.json").write_text(json.dumps({"xyzzy": len(words)}))
    (folder / "special_tokens_map.json").write_text(json.dumps({"unk_token": "film"}))
    (folder / "pytorch_model.bin").write_bytes(b"\x80")

    def snapshot_download(name, allow_patterns):
        fetched = tmp_path / "fetched"
        fetched.mkdir()
        for path in folder.iterdir():
            if any(fnmatch(path.name, pattern) for pattern in allow_patterns):
                shutil.copy(path, fetched)
        return str(fetched)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    fetched = resolve_folder("somebody/old-bert")
    tokenizer = load_tokenizer(fetched)
    assert tokenizer.convert_tokens_to_ids(tokenizer.tokenize("a xyzzy")) == [
        words.index("a"),
        len(words),
    ]
    assert tokenizer.unk_token == "film"
    assert not (fetched / "pytorch_model.bin").exists()


def test_a_slow_tokenizer_is_refused(folder, monkeypatch):
    class Slow:
        is_fast = False

    monkeypatch.setattr(
        "dpbert_jax.hub.folders.AutoTokenizer.from_pretrained", lambda *_, **__: Slow()
    )
    write_config(read_config(folder), folder)
    with pytest.raises(UserError, match="Slow is not a fast tokenizer"):
        load_tokenizer(folder)
