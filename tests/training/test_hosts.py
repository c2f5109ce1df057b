"""Real processes on one machine, over Gloo: a run on several is the run on one."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from dpbert_jax import hosts
from dpbert_jax.errors import UserError

REPOSITORY = Path(__file__).resolve().parents[2]
DEADLINE = 1800  # seconds; eight processes that compile on one core take ten minutes


def free_port():
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


def launch(command, processes, devices, folders=None):
    """Starts `command` as so many processes with so many CPU devices each, in their folders."""
    address = f"localhost:{free_port()}"
    flags = "--xla_backend_optimization_level=0 --xla_force_host_platform_device_count"
    started = []
    for number in range(processes):
        # Virtual devices share a pool of threads, and a collective needs one for each of them.
        environment = {**os.environ, "XLA_FLAGS": f"{flags}={devices}", "PJRT_NPROC": "8"}
        if processes > 1:
            environment |= {
                hosts.COORDINATOR: address,
                hosts.NUM_PROCESSES: str(processes),
                hosts.PROCESS_ID: str(number),
            }
        started.append(
            subprocess.Popen(
                [sys.executable, *command],
                env=environment,
                cwd=folders[number] if folders else REPOSITORY,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
    return started


def finish(started):
    """Waits; returns exit codes and outputs."""
    try:
        outputs = [process.communicate(timeout=DEADLINE)[0] for process in started]
    finally:
        for process in started:
            process.kill()
    return [process.returncode for process in started], outputs


def train_command(folder, flags, **changes):
    values = {**flags, "output_dir": folder, **changes}
    words = [word for name, value in values.items() for word in (f"--{name}", str(value))]
    return ["train.py", *words]


def run(folder, flags, processes, devices, rows=8, accumulation=1):
    """Trains on so many processes and devices, `rows` a step; returns the lines of its metrics."""
    a_device = rows // (processes * devices * accumulation)
    flags = {**flags, "report_to": "none", "per_device_train_batch_size": a_device}
    command = train_command(folder, flags)
    command += ["--multihost"] if processes > 1 else []
    codes, outputs = finish(launch(command, processes, devices))
    assert codes == [0] * processes, outputs
    printed = ["rule threshold" in output for output in outputs]
    assert printed == [True] + [False] * (processes - 1)  # the first alone prints the table
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def assert_same_run(lines, wanted):
    assert [(line["step"], line["phase"]) for line in lines] == [
        (line["step"], line["phase"]) for line in wanted
    ]
    for line, other in zip(lines, wanted, strict=True):
        if "loss" in line:
            assert line["loss"] == pytest.approx(other["loss"], abs=1e-5)
        else:
            assert line["eval_score"] == pytest.approx(other["eval_score"], abs=1e-6)
            # By rounding, a gate at the threshold falls to either side: one layer of two rows.
            assert line["eval_mean_layers"] == pytest.approx(other["eval_mean_layers"], abs=0.1001)


@pytest.mark.slow
def test_two_processes_train_as_one_does(steady_run, steady_flags, tmp_path):
    """Two devices each, against one process with four: every loss, and the dev scores."""
    lines = run(tmp_path / "two", steady_flags, processes=2, devices=2)
    wanted = [json.loads(line) for line in (steady_run / "metrics.jsonl").read_text().splitlines()]
    assert_same_run(lines, wanted)
    trained = load_file(tmp_path / "two" / "model.safetensors")
    for name, tensor in load_file(steady_run / "model.safetensors").items():
        np.testing.assert_allclose(trained[name], tensor, atol=2e-3, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("accumulation", [1, 2])
def test_eight_devices_are_the_same_however_many_processes_share_them(
    accumulation, steady_flags, tmp_path
):
    """1 x 8, 2 x 4 and 8 x 1 processes and devices, 16 rows a step."""
    flags = {**steady_flags, "gradient_accumulation_steps": accumulation}
    runs = [
        run(
            tmp_path / f"{processes}",
            flags,
            processes,
            8 // processes,
            rows=16,
            accumulation=accumulation,
        )
        for processes in (1, 2, 8)
    ]
    for lines in runs[1:]:
        assert_same_run(lines, runs[0])


@pytest.mark.slow
def test_one_process_that_is_told_to_stop_stops_all_behind_the_same_step(
    steady_flags, steady_run, tmp_path
):
    flags = {**steady_flags, "report_to": "none", "save_steps": 1000}
    command = [*train_command(tmp_path / "run", flags, resume="auto"), "--multihost"]
    started, metrics = launch(command, 2, 2), tmp_path / "run" / "metrics.jsonl"
    deadline = time.monotonic() + DEADLINE
    while not metrics.exists() or not metrics.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    started[1].send_signal(signal.SIGTERM)  # the one that writes nothing
    codes, outputs = finish(started)
    assert codes == [143, 143], outputs
    said = {line for out in outputs for line in out.splitlines() if "Stopped by SIGTERM" in line}
    assert len(said) == 1
    codes, outputs = finish(launch(command, 2, 2))
    assert codes == [0, 0], outputs
    texts = (metrics.read_text(), (steady_run / "metrics.jsonl").read_text())
    assert_same_run(*([json.loads(line) for line in text.splitlines()] for text in texts))


def test_a_mistake_of_one_process_is_told_by_all(run_flags, tmp_path):
    """The output folder is process 0's to look at; the others must not wait for it for ever."""
    (tmp_path / "notes.txt").write_text("not a run\n")
    command = [*train_command(tmp_path, run_flags), "--multihost"]
    codes, outputs = finish(launch(command, 2, 1))
    assert codes == [2, 2]
    for output in outputs:
        assert "is not empty and holds no run" in output and "Traceback" not in output


@pytest.mark.slow
def test_processes_with_other_rows_are_refused(run_flags, tmp_path):
    other = tmp_path / "other.csv"
    text = Path(run_flags["train_file"]).read_text()
    other.write_text(text.replace("the", "a"))
    (tmp_path / "0").mkdir()
    (tmp_path / "1").mkdir()
    shutil.copy(run_flags["train_file"], tmp_path / "0" / "train.csv")
    shutil.copy(other, tmp_path / "1" / "train.csv")
    # One path on every host, other contents: each process sees the folder that it was started in.
    script = str(REPOSITORY / "train.py")
    command = train_command(tmp_path / "run", run_flags, train_file="train.csv")
    command = [script, *command[1:], "--multihost"]
    codes, outputs = finish(launch(command, 2, 1, folders=[tmp_path / "0", tmp_path / "1"]))
    assert codes == [2, 2]
    assert all("has other training rows than process 0" in output for output in outputs)


@pytest.mark.parametrize(
    "environment, words",
    [
        ({hosts.NUM_PROCESSES: "2"}, "are needed together"),
        (
            {hosts.COORDINATOR: "h:1", hosts.NUM_PROCESSES: "two", hosts.PROCESS_ID: "0"},
            "did not find each other",
        ),
        ({}, "did not find each other"),
    ],
)
def test_an_environment_that_names_no_processes_is_refused(environment, words):
    with pytest.raises(UserError, match=words):
        hosts.initialize(environment)


def test_alone_every_function_is_the_plain_thing():
    assert hosts.is_main()
    assert hosts.own_rows(5).tolist() == [0, 1, 2, 3, 4]
    rows = np.arange(6).reshape(3, 2)
    assert hosts.all_rows(rows, 3) is rows
    assert hosts.from_main(lambda: "value", like=None) == "value"
    hosts.check_agreement("anything", b"", b"x")
    assert not hosts.is_one_of_many({hosts.TPU_HOSTS: "one"})
    assert hosts.is_one_of_many({hosts.TPU_HOSTS: "one,two"})
