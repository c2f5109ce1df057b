"""Checksums: whatever byte changes, loading refuses the folder and names the file."""

import re
import subprocess

import numpy as np
import pytest
from transformers import BertTokenizer

from dpbert_jax.config import TINY, Calibration, DPBertConfig, PlannerConfig
from dpbert_jax.errors import UserError
from dpbert_jax.export.formats import ExportOptions, load_artifact, write_artifact
from dpbert_jax.export.torch_folder import save_torch_folder
from dpbert_jax.export_formats import export_format, export_format_names
from dpbert_jax.hub import folders, load_params, load_run, load_tokenizer, save_folder
from dpbert_jax.integrity import SUMS, inside, read_sums, seal, update_sums, verify
from dpbert_jax.model import Model

CONFIG = DPBertConfig(TINY, PlannerConfig(hidden_size=8), Calibration((0.4, 1.0), (0.2, -6.0)))
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "bad"]
FLIPS = 25


@pytest.fixture(scope="module")
def model(random_params):
    tokenizer = BertTokenizer(vocab={word: i for i, word in enumerate(WORDS)})
    return Model(CONFIG, random_params(CONFIG), tokenizer, 16)


@pytest.fixture
def folder(model, tmp_path):
    save_folder(tmp_path / "run", CONFIG, model.params, model.tokenizer)
    return tmp_path / "run"


def flips(folder, seed=0):
    """Flips a random bit of every file in turn, often; yields the file while it is changed."""
    random = np.random.default_rng(seed)
    for path in sorted(folder.iterdir()):
        whole = path.read_bytes()
        for position in random.integers(0, len(whole), FLIPS):
            changed = bytearray(whole)
            changed[position] ^= 1 << int(random.integers(8))
            path.write_bytes(changed)
            yield path
        path.write_bytes(whole)


def coreutils(folder):
    """What `sha256sum -c` says, with its warnings as errors."""
    command = ["sha256sum", "--check", "--strict", "--quiet", SUMS]
    return subprocess.run(command, cwd=folder, capture_output=True, check=False).returncode


def test_sha256sum_reads_what_is_written_and_the_other_way_round(folder):
    assert coreutils(folder) == 0
    before = read_sums(folder)
    files = sorted(path.name for path in folder.iterdir() if path.name != SUMS)
    assert sorted(before) == files
    for mode in ("--text", "--binary"):
        made = subprocess.run(
            ["sha256sum", mode, *files], cwd=folder, capture_output=True, check=True
        )
        (folder / SUMS).write_bytes(made.stdout)
        assert read_sums(folder) == before
        load_run(str(folder))


def test_a_changed_bit_of_a_run_is_noticed_and_its_file_named(folder):
    for path in flips(folder):
        with pytest.raises(UserError, match=re.escape(path.name)):
            load_run(str(folder))
    load_run(str(folder))


@pytest.mark.parametrize("form", export_format_names())
def test_a_changed_bit_of_an_export_is_noticed_and_its_file_named(form, model, tmp_path):
    written = export_format(form)
    write_artifact(written, tmp_path, model, ExportOptions())
    assert coreutils(tmp_path) == 0
    assert set(read_sums(tmp_path)) == {path.name for path in tmp_path.iterdir()} - {SUMS}
    read = written._replace(load=lambda *_: len)
    for path in flips(tmp_path):
        with pytest.raises(UserError, match=re.escape(path.name)):
            load_artifact(read, tmp_path, model, ExportOptions())
        with pytest.raises(UserError, match=re.escape(path.name)):
            load_run(str(tmp_path)) if form == "huggingface" else verify(tmp_path)
    assert load_artifact(read, tmp_path, model, ExportOptions()) is len


def test_each_reader_checks_what_it_reads(folder):
    weights, tokenizer = folder / "model.safetensors", folder / "tokenizer.json"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\1")
    load_tokenizer(folder)
    with pytest.raises(UserError, match=r"model\.safetensors is not what its SHA256SUMS lists"):
        load_params(folder, CONFIG)
    seal(folder)
    load_params(folder, CONFIG)
    tokenizer.write_text(tokenizer.read_text() + " ")
    load_params(folder, CONFIG)
    with pytest.raises(UserError, match=r"tokenizer\.json is not what"):
        load_tokenizer(folder)


def test_a_file_is_hashed_once_a_load(folder, monkeypatch):
    opened = []
    monkeypatch.setattr(
        "dpbert_jax.integrity.digest", lambda path: opened.append(path.name) or sums[path.name]
    )
    sums = read_sums(folder)
    load_run(str(folder))
    large = [name for name in opened if name != "config.json"]
    assert sorted(large) == sorted(set(sums) - {"config.json"})


def test_missing_and_added_files_are_named(folder):
    (folder / "notes.txt").write_text("mine")
    (folder / "metrics.jsonl").write_text("{}")
    load_run(str(folder))
    added = folder / "model.safetensors.index.json"
    added.write_text('{"weight_map": {}}')
    with pytest.raises(UserError, match=r"index\.json is not listed in its SHA256SUMS"):
        load_run(str(folder))
    added.unlink()
    (folder / "tokenizer_config.json").unlink()
    with pytest.raises(UserError, match=r"tokenizer_config\.json is missing, but listed"):
        load_run(str(folder))


def test_the_sentence_says_how_to_accept_a_change(folder):
    config = folder / "config.json"
    config.write_text(config.read_text().replace('"hidden_act": "gelu"', '"hidden_act": "relu"'))
    with pytest.raises(UserError, match="--resume") as error:
        load_run(str(folder))
    command = re.search(r"accept it: (\(.*\))\.$", str(error.value)).group(1)
    subprocess.run(command, shell=True, check=True)
    assert load_run(str(folder))[1].encoder.hidden_act == "relu"


def test_a_folder_without_sums_loads_unchecked(folder):
    (folder / SUMS).unlink()
    update_sums(folder, ["config.json"])
    assert not (folder / SUMS).exists()
    (folder / "config.json").write_text((folder / "config.json").read_text() + " ")
    load_run(str(folder))


@pytest.mark.parametrize("written", ["", "abc  config.json\n", "\xff", "0" * 64 + " config.json\n"])
def test_sums_that_are_none_are_refused(written, folder):
    (folder / SUMS).write_bytes(written.encode("latin-1"))
    with pytest.raises(UserError, match=r"SHA256SUMS (line 1 is not as|is damaged)"):
        load_run(str(folder))


@pytest.mark.parametrize(
    "name", ["../run", "/etc/passwd", "a/../../b", "..", ".", "", "a\\b", "C:b", "a\0", 3, None]
)
def test_names_that_lead_out_of_a_folder_are_refused(name, tmp_path):
    with pytest.raises(UserError, match="nothing outside the folder is read"):
        inside(tmp_path, name, tmp_path / "list")
    assert inside(tmp_path, "a b.bin", tmp_path / "list") == tmp_path / "a b.bin"


def crash_after(monkeypatch, calls):
    """Lets so many steps of a save through: tokenizer, config, weights aside, sums, the move."""
    done = []

    def counted(function):
        def step(*args, **kwargs):
            if len(done) == calls:
                raise KeyboardInterrupt
            done.append(function)
            return function(*args, **kwargs)

        return step

    for name in ("write_config", "save_file", "write_sums"):
        monkeypatch.setattr(folders, name, counted(getattr(folders, name)))
    monkeypatch.setattr(folders.os, "replace", counted(folders.os.replace))


@pytest.mark.parametrize("before", ["nothing", "other weights", "other config"])
def test_a_save_that_is_cut_short_never_passes_for_a_whole_one(
    before, model, random_params, tmp_path, monkeypatch
):
    old = CONFIG
    if before == "other config":
        old = DPBertConfig(TINY, CONFIG.planner)
    states = 0
    for calls in range(20):
        folder = tmp_path / str(calls)
        if before != "nothing":
            save_folder(folder, old, random_params(old, 1), model.tokenizer)
        with monkeypatch.context() as patch:
            crash_after(patch, calls)
            try:
                save_folder(folder, CONFIG, model.params, model.tokenizer)
            except KeyboardInterrupt:
                states += 1
        try:
            _, config, params, _ = load_run(str(folder))
        except UserError as error:
            assert re.search(r"no model\.safetensors|no config\.json|SHA256SUMS", str(error))
        else:  # all of the old, or all of the new
            new = np.array_equal(
                params["planner"]["input"]["kernel"], model.params["planner"]["input"]["kernel"]
            )
            assert config == (CONFIG if new else old)
            assert new or before != "nothing"
        save_folder(folder, CONFIG, model.params, model.tokenizer)
        assert load_run(str(folder))[1] == CONFIG
        if states == calls:
            break
    assert states >= 5


def test_the_code_of_a_pytorch_folder_is_listed(model, tmp_path):
    save_torch_folder(tmp_path, CONFIG, model.params, model.tokenizer)
    assert coreutils(tmp_path) == 0
    assert {"modeling_dpbert.py", "README.md", "config.json"} <= set(read_sums(tmp_path))
