"""Folders in a bucket: a file:// URL goes through everything that gs:// does but the network."""

import json

import pytest

from dpbert_jax.bucket import CACHE, BucketFolder, is_url
from dpbert_jax.errors import UserError
from dpbert_jax.hub import load_run
from dpbert_jax.training.arguments import TrainArguments
from dpbert_jax.training.run import train


@pytest.fixture
def bucket(tmp_path, monkeypatch):
    """A function (machine) -> the bucket's folder as that machine sees it; and itself."""
    store = tmp_path / "store" / "run"

    def on(machine):
        monkeypatch.setenv(CACHE, str(tmp_path / machine))
        return BucketFolder(f"file://{store}")

    return on, store


def write(folder, name, text):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def files_in(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def steps_in(run):
    return {name.partition("/")[0] for name in files_in(run / "checkpoints")}


def test_what_one_machine_pushes_another_pulls(bucket):
    on, store = bucket
    here = on("here")
    here.pull()
    assert list(here.local.iterdir()) == []
    write(here.local, "config.json", "{}")
    write(here.local, "checkpoints/3/state", "three")
    write(here.local, "checkpoints/6.orbax-checkpoint-tmp/state", "half")
    here.push()
    assert not list(store.glob("checkpoints/6*"))
    write(here.local, "checkpoints/6/state", "six")
    (here.local / "checkpoints/3/state").unlink()
    write(here.local, "config.json", '{"changed": 1}')
    here.push()
    there = on("there")
    there.pull()
    assert files_in(there.local) == {"config.json", "checkpoints/6/state"}
    assert json.loads((there.local / "config.json").read_text()) == {"changed": 1}


def test_pulling_leaves_nothing_of_an_older_copy(bucket):
    on, _ = bucket
    write(on("here").local, "left.txt", "old")
    on("here").pull()
    assert not (on("here").local / "left.txt").exists()


def test_an_unknown_store_is_refused_in_a_sentence():
    with pytest.raises(UserError, match="nosuch://bucket"):
        BucketFolder("nosuch://bucket/run")
    assert is_url("gs://bucket/run") and not is_url("runs/mrpc")


@pytest.mark.slow
def test_a_run_in_a_bucket_is_the_run_in_a_folder(bucket, run_flags, tiny_run):
    on, store = bucket
    here = on("here")
    train(TrainArguments(output_dir=f"file://{store}", **run_flags))
    weights = "model.safetensors"
    assert (store / weights).read_bytes() == (tiny_run / weights).read_bytes()
    assert steps_in(store) == steps_in(tiny_run)
    on("there")  # another machine, with nothing of its own, finds a finished run
    train(TrainArguments(output_dir=f"file://{store}", **{**run_flags, "resume": "auto"}))
    assert (store / weights).read_bytes() == (tiny_run / weights).read_bytes()
    folder = load_run(f"file://{store}")[0]
    assert folder != here.local and (folder / weights).exists()
