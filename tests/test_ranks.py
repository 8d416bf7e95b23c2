"""What happens to a job of two ranks when one of them, or their launcher, comes to grief."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def start(folder, kind):
    launch = ["-m", "paddle.distributed.launch", "--nproc_per_node", "2", "--log_dir", str(folder / "log")]
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
        assert "error: rank 1 has a reason" in screen
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
