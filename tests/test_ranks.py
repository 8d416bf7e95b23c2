"""The end of a job of two ranks when one of them, or their launcher, fails, is killed or stalls."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import kill_training
import numpy as np
import pytest
from helpers import ROOT, on_two_ranks
from safetensors.numpy import load_file


def start(folder, kind):
    launch = on_two_ranks(folder / "log")
    command = [sys.executable, *launch, str(ROOT / "tests/two_ranks.py"), str(folder), kind]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    )


def pids_of(folder, seconds=90):
    """Those of the ranks, once both have started."""
    limit = time.monotonic() + seconds
    while time.monotonic() < limit:
        found = [path.read_text() for path in folder.glob("started*")]
        if len(found) == 2 and all(found):
            return [int(pid) for pid in found]
        time.sleep(0.1)
    raise TimeoutError("the ranks have not started")


@pytest.mark.parametrize(
    "kind",
    [
        "fails",
        pytest.param("is killed", marks=pytest.mark.slow),
        pytest.param("stalls", marks=pytest.mark.slow),
    ],
)
def test_a_rank_that_goes_ends_the_job_and_says_why(tmp_path, kind):
    job = start(tmp_path, kind)
    pids_of(tmp_path)
    begin = time.monotonic()
    screen, _ = job.communicate(timeout=90)
    seconds = time.monotonic() - begin
    assert job.returncode != 0
    assert seconds < (60 if kind == "stalls" else 30)
    if kind == "fails":
        assert "rank 1 has a reason" in screen
    if kind == "stalls":
        log = (tmp_path / "log/workerlog.1").read_text()
        assert "in stalled" in log and "two_ranks.py" in log


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process of its parent's end")
def test_ranks_end_with_their_launcher(tmp_path):
    job = start(tmp_path, "are left alone")
    pids = pids_of(tmp_path)
    job.send_signal(signal.SIGKILL)
    job.communicate(timeout=30)
    limit = time.monotonic() + 30
    while any(Path(f"/proc/{pid}").exists() for pid in pids):
        assert time.monotonic() < limit
        time.sleep(0.1)


@pytest.mark.slow
def test_two_launchers_train_as_two_processes_of_one(tmp_path):
    """Two nodes, here both on this machine: the weights are those of one launcher, bit for bit."""
    kill_training.prepare(tmp_path)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        master = f"127.0.0.1:{free.getsockname()[1]}"

    def launch(output, log, *options):
        command = [
            sys.executable,
            "-m",
            "paddle.distributed.launch",
            *options,
            "--log_dir",
            str(tmp_path / log),
        ]
        command += [str(ROOT / "tools/train.py"), "-c", str(tmp_path / "config.yaml")]
        return subprocess.Popen(
            [*command, "-o", f"output_dir={tmp_path / output}"],
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    nodes = ["--nnodes", "2", "--master", master, "--nproc_per_node", "1"]
    both = [launch("two", f"log{node}", *nodes) for node in range(2)]
    assert [node.wait(200) for node in both] == [0, 0]
    assert launch("one", "log", "--nproc_per_node", "2").wait(200) == 0
    two, one = (load_file(tmp_path / name / "checkpoints/last/model.safetensors") for name in ("two", "one"))
    assert two.keys() == one.keys() and all(np.array_equal(two[key], one[key]) for key in one)


def test_a_rank_whose_launcher_ended_before_it_began_ends_too(tmp_path):
    """Nothing would end it: the launcher's death is announced to those alone who asked before."""
    child = """
import os, sys, time
from ppcls import distributed
parent = os.getppid()
open(sys.argv[1], "w").close()
while os.getppid() == parent:
    time.sleep(0.01)
distributed.end_with_launcher()
time.sleep(0.5)
open(sys.argv[2], "w").close()
"""
    parent = f"""
import os, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", {child!r}, "began", "survived"])
while not os.path.exists("began"):
    time.sleep(0.01)
print(child.pid, flush=True)
os._exit(0)
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    run = subprocess.run(
        [sys.executable, "-c", parent],
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    deadline = time.monotonic() + 30
    while Path(f"/proc/{int(run.stdout)}").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert (tmp_path / "began").exists() and not (tmp_path / "survived").exists()
