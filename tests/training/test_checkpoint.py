"""Checkpoints: what is saved comes back; what is damaged is stepped over, and said."""

import json
import logging
import os
import resource
import shutil
import signal
import time

import jax
import numpy as np
import pytest

from dpbert_jax.errors import UserError
from dpbert_jax.training import checkpoint
from dpbert_jax.training.checkpoint import KEPT, Checkpoints, Position
from dpbert_jax.training.step import TrainState


def state_at(step):
    """A small training state, different at every step."""
    kernel = np.random.default_rng(step).standard_normal((3, 4), np.float32)
    params = {"head": {"kernel": kernel, "bias": np.zeros(4, np.float32)}}
    moments = {"mu": jax.tree.map(np.ones_like, params), "count": np.int32(step)}
    return TrainState(params, (moments, ()), np.int32(step))


def abstract_state(stage):
    return jax.eval_shape(lambda: jax.tree.map(jax.numpy.asarray, state_at(0)))


def save(folder, *steps):
    checkpoints = Checkpoints(folder, {"learning_rate": 0.1})
    for step in steps:
        checkpoints.save(step, Position(1, step - 10), state_at(step))
    checkpoints.close()


def restore(folder):
    checkpoints = Checkpoints(folder, {"learning_rate": 0.1})
    try:
        return checkpoints.restore(abstract_state)
    finally:
        checkpoints.close()


def files_of(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


def truncate(folder):
    for path in files_of(folder):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(folder):
    for path in files_of(folder):
        path.write_bytes(b"")


def delete_files(folder):
    for path in files_of(folder):
        path.unlink()


def delete_state(folder):
    shutil.rmtree(folder / "state")


def delete_record(folder):
    shutil.rmtree(folder / "record")


def scramble(folder):
    for path in files_of(folder / "state"):
        data = path.read_bytes()
        path.write_bytes(bytes(byte ^ 0x5A for byte in data))


def break_record(folder):
    (path,) = (p for p in files_of(folder / "record") if p.name == "metadata")
    path.write_text('{"stage": 1')


def other_shapes(folder):
    """Readable, but not of this model."""
    shutil.rmtree(folder)
    other = TrainState({"head": {"kernel": np.zeros(7, np.float32)}}, (), np.int32(1))
    checkpoints = Checkpoints(folder.parent, {})
    checkpoints.save(int(folder.name), Position(1, 3), other)
    checkpoints.close()


DAMAGES = (
    truncate,
    empty,
    delete_files,
    delete_state,
    delete_record,
    scramble,
    break_record,
    other_shapes,
)


def assert_restores(folder, step):
    found, position, state = restore(folder)
    assert (found, position) == (step, Position(1, step - 10))
    jax.tree.map(np.testing.assert_array_equal, state, state_at(step))


def test_round_trip(tmp_path):
    assert restore(tmp_path) is None
    save(tmp_path, 12)
    assert_restores(tmp_path, 12)


def test_what_a_killed_run_left_half_written_is_removed(tmp_path):
    save(tmp_path, 12)
    left = tmp_path / "13.orbax-checkpoint-tmp"
    (left / "state").mkdir(parents=True)
    assert_restores(tmp_path, 12)
    assert not left.exists()


def test_the_newest_are_kept(tmp_path):
    save(tmp_path, *range(11, 16))
    kept = sorted(path.name for path in tmp_path.iterdir())
    assert kept == [str(step) for step in range(16 - KEPT, 16)]
    assert_restores(tmp_path, 15)


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_a_damaged_one_gives_way_to_the_one_before(damage, tmp_path, caplog):
    save(tmp_path, 12, 14)
    damage(tmp_path / "14")
    with caplog.at_level(logging.WARNING, "dpbert_jax"):
        assert_restores(tmp_path, 12)
    assert "checkpoint of step 14 is damaged" in caplog.text
    save(tmp_path, 14)  # its number is free again
    assert_restores(tmp_path, 14)


@pytest.mark.parametrize("damage", [truncate, other_shapes], ids=lambda damage: damage.__name__)
def test_where_all_are_damaged_the_run_is_refused_and_nothing_deleted(damage, tmp_path):
    save(tmp_path, 12, 14)
    for step in (12, 14):
        damage(tmp_path / str(step))
    for _ in range(2):  # and again: a second try must not start from nothing
        with pytest.raises(UserError, match=r"none of the checkpoints \[14, 12\] can be read"):
            restore(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["12", "14"]


def test_what_a_killed_save_left_behind_is_ignored(tmp_path):
    save(tmp_path, 12)
    left = tmp_path / "14.orbax-checkpoint-tmp-1"
    shutil.copytree(tmp_path / "12", left)
    truncate(left)
    assert_restores(tmp_path, 12)
    save(tmp_path, 14)
    assert_restores(tmp_path, 14)


# Storage threads that report damage may find orbax's event loop closed.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_any_byte_that_is_changed_is_noticed_or_changes_nothing(tmp_path, caplog):
    """One random byte at a time, over all files of the newest checkpoint."""
    save(tmp_path, 12, 14)
    whole = tmp_path.with_name("whole")
    shutil.copytree(tmp_path, whole)
    random, noticed = np.random.default_rng(0), 0
    files = [path.relative_to(tmp_path) for path in files_of(tmp_path / "14")]
    for name in (files * 3)[:60]:
        data = bytearray((whole / name).read_bytes())
        if not data:
            continue
        data[random.integers(len(data))] ^= 1 << random.integers(8)
        (tmp_path / name).write_bytes(data)
        with caplog.at_level(logging.CRITICAL, "absl"):
            found, _, state = restore(tmp_path)
        jax.tree.map(np.testing.assert_array_equal, state, state_at(found))
        noticed += found == 12
        shutil.rmtree(tmp_path)
        shutil.copytree(whole, tmp_path)
    assert noticed > len(files) // 2  # many bytes matter


def test_the_array_that_changed_is_named(tmp_path, caplog, monkeypatch):
    save(tmp_path, 12, 14)
    original = checkpoint._sums

    def other_sums(state):
        return {**original(state), "params/head/kernel": "0"}

    monkeypatch.setattr(checkpoint, "_sums", other_sums)
    with pytest.raises(UserError), caplog.at_level(logging.WARNING, "dpbert_jax"):
        restore(tmp_path)
    assert "params/head/kernel: not as it was saved" in caplog.text


def test_the_state_may_change_while_it_is_being_written(tmp_path):
    """The next step takes over the buffers."""
    checkpoints, state = Checkpoints(tmp_path, {}), jax.tree.map(np.array, state_at(12))
    checkpoints.save(12, Position(1, 2), state)
    jax.tree.map(lambda leaf: leaf.fill(7), state)
    checkpoints.close()
    assert_restores(tmp_path, 12)


def wait_until_nothing_is_written(folder):
    """Behind the write that failed, orbax's other ones go on: a new run is another process."""
    before = None
    while before != (before := list(os.walk(folder))):
        time.sleep(0.5)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_save_that_fails_is_told_and_leaves_the_ones_before(tmp_path, caplog):
    """Files of more than 64 bytes cannot be written, as on a full disk."""
    caplog.set_level(logging.CRITICAL, "absl")
    save(tmp_path, 12)
    checkpoints = Checkpoints(tmp_path, {})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64, limits[1]))
    try:
        with pytest.raises(UserError, match=r"could not be written to .*File too large.*--resume"):
            checkpoints.save(14, Position(1, 4), state_at(14))
            checkpoints.close()
        wait_until_nothing_is_written(tmp_path)  # the disk stays full until then
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)
    checkpoints.close()  # nothing more to say
    assert_restores(tmp_path, 12)


def test_the_record_has_the_resolved_config(tmp_path):
    save(tmp_path, 12)
    (path,) = (p for p in files_of(tmp_path / "12" / "record") if p.name == "metadata")
    record = json.loads(path.read_text())
    assert record["config"] == {"learning_rate": 0.1}
    assert set(record) == {"position", "config", "arrays", "sha256"}
