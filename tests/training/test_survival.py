"""Runs that are killed, told to stop, moved to other devices, or out of disk: nothing is lost."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

REPOSITORY = Path(__file__).resolve().parents[2]
WEIGHTS = "model.safetensors"
KILLS = 50
DEADLINE = 600  # seconds; a process that takes longer hangs


def start(folder, flags, devices=4, **changes):
    """train.py as a process of its own, on so many CPU devices."""
    values = {**flags, "output_dir": folder, "report_to": "none", **changes}
    words = [word for name, value in values.items() for word in (f"--{name}", str(value))]
    options = "--xla_backend_optimization_level=0 --xla_force_host_platform_device_count"
    return subprocess.Popen(
        [sys.executable, str(REPOSITORY / "train.py"), *words],
        # Virtual devices share a pool of threads, and a collective needs one for each of them.
        env={**os.environ, "XLA_FLAGS": f"{options}={devices}", "PJRT_NPROC": "8"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process):
    """Waits for a process; returns its exit code and what it said."""
    with process:
        stderr = process.communicate(timeout=DEADLINE)[1]
    return process.returncode, stderr


def logged(folder):
    """Lines of a run's metrics so far, of its steps only."""
    path = folder / "metrics.jsonl"
    text = path.read_text() if path.exists() else ""
    lines = [json.loads(line) for line in text.split("\n")[:-1]]
    return [(line["step"], line["phase"], line["loss"]) for line in lines if "loss" in line]


def wait_for_step(folder, process, behind):
    """Waits until a step behind line `behind` is logged; whether the process still runs."""
    deadline = time.monotonic() + DEADLINE
    while len(logged(folder)) <= behind and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return process.poll() is None


@pytest.mark.slow
@pytest.mark.parametrize("number, code", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_run_that_is_told_to_stop_saves_and_goes_on(number, code, run_flags, tiny_run, tmp_path):
    flags = {**run_flags, "save_steps": 1000}  # nothing is saved but by the signal and stage ends
    process = start(tmp_path / "run", flags)
    assert wait_for_step(tmp_path / "run", process, 1)
    process.send_signal(number)
    found, stderr = finish(process)
    assert found == code, stderr
    assert "Traceback" not in stderr
    assert f"Stopped by {number.name} behind step" in stderr
    found, stderr = finish(start(tmp_path / "run", flags, resume="auto"))
    assert found == 0, stderr
    assert (tmp_path / "run" / WEIGHTS).read_bytes() == (tiny_run / WEIGHTS).read_bytes()
    assert [line[:2] for line in logged(tmp_path / "run")] == [
        line[:2] for line in logged(tiny_run)
    ]


@pytest.mark.slow
def test_a_run_goes_on_with_fewer_devices(steady_flags, steady_run, tmp_path):
    """Four devices, then two with twice the rows each: the same but for rounding."""
    folder = tmp_path / "run"
    process = start(folder, steady_flags)
    assert wait_for_step(folder, process, 3)
    process.send_signal(signal.SIGTERM)
    assert finish(process)[0] == 143
    found, stderr = finish(start(folder, steady_flags, devices=2, resume="always"))
    assert found == 2 and "learned from 8 rows a step, and this would be 4" in stderr
    more = {"resume": "always", "per_device_train_batch_size": 4}
    found, stderr = finish(start(folder, steady_flags, devices=2, **more))
    assert found == 0, stderr
    for line, wanted in zip(logged(folder), logged(steady_run), strict=True):
        assert line[:2] == wanted[:2] and line[2] == pytest.approx(wanted[2], abs=1e-5)
    trained = load_file(folder / WEIGHTS)
    for name, tensor in load_file(steady_run / WEIGHTS).items():
        np.testing.assert_allclose(trained[name], tensor, atol=2e-3, err_msg=name)


@pytest.mark.slow
def test_kills_at_random_moments_do_not_show(run_flags, tmp_path, capsys):
    """SIGKILL, 50 times, with a save at every step: each restart finds a whole checkpoint."""
    flags = {
        **run_flags,
        "save_steps": 1,
        "num_train_epochs": 40.0,
        "num_planner_epochs": 20.0,
        "resume": "auto",
    }
    straight = tmp_path / "straight"
    found, stderr = finish(start(straight, flags))
    assert found == 0, stderr
    wanted = (straight / WEIGHTS).read_bytes()

    random, kills, runs, began = np.random.default_rng(0), 0, 0, time.monotonic()
    while kills < KILLS or runs == 0:
        folder = tmp_path / f"run{runs}"
        while True:
            process = start(folder, flags)
            if kills == KILLS or not wait_for_step(folder, process, len(logged(folder))):
                found, stderr = finish(process)
                assert found == 0, stderr
                break
            time.sleep(random.uniform(0, 0.5))
            process.kill()
            found, stderr = finish(process)
            assert "damaged" not in stderr and "cannot be read" not in stderr
            kills += found == -signal.SIGKILL
            if found == 0:
                break
        assert (folder / WEIGHTS).read_bytes() == wanted
        assert [line[:2] for line in logged(folder)] == [line[:2] for line in logged(straight)]
        runs += 1
    with capsys.disabled():
        seconds = time.monotonic() - began
        print(f"\n{kills} kills, {runs} runs ended as the straight one, {seconds:.0f} s")


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="a small disk can be mounted by root only")
def test_a_full_disk_stops_the_run_and_leaves_what_is_saved(run_flags, tiny_run, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", disk], check=True)
    try:
        process = start(disk / "run", run_flags)
        assert wait_for_step(disk / "run", process, 3)
        filler = disk / "filler"
        with filler.open("wb") as file, pytest.raises(OSError, match="No space left"):
            while True:
                file.write(bytes(2**16))
                file.flush()
        found, stderr = finish(process)
        assert found == 2, stderr
        assert "Traceback" not in stderr
        assert "could not be written" in stderr and "No space left on device" in stderr
        filler.unlink()
        found, stderr = finish(start(disk / "run", run_flags, resume="auto"))
        assert found == 0, stderr
        assert (disk / "run" / WEIGHTS).read_bytes() == (tiny_run / WEIGHTS).read_bytes()
    finally:
        subprocess.run(["umount", disk], check=True)
