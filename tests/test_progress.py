"""Progress bars on a terminal and elsewhere."""

import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios
import threading

import pytest

from ppcls.progress import progress_bar

WORK = """
import time
from ppcls.progress import progress_bar
try:
    with progress_bar(4, "failing"):
        raise OSError
except OSError:
    print("an error", flush=True)
with progress_bar(4, "working") as bar:
    for _ in range(4):
        time.sleep(0.11)
        bar.update()
"""


@pytest.mark.parametrize("initial", [0, 3])
def test_work_that_fails_at_its_beginning_shows_no_bar(initial, capsys):
    with pytest.raises(OSError), progress_bar(10, "work", initial=initial):
        raise OSError
    assert capsys.readouterr().err == ""


def test_bars_leave_no_threads():
    before = set(threading.enumerate())
    for _ in range(3):
        with progress_bar(2, "work") as bar:
            bar.update()
            assert set(threading.enumerate()) <= before


def test_work_that_ends_early_shows_its_last_state(capsys):
    with progress_bar(10, "work") as bar:
        bar.update(4)
        bar.update(6)
    line, end = capsys.readouterr().err.split("\n")
    assert "work: 100%" in line and "10/10" in line and not end
    with progress_bar(10, "work", delay=5) as bar:
        bar.update(10)
    assert capsys.readouterr().err == ""


def test_a_terminal_shows_a_bar_from_the_first_unit_on_and_removes_it():
    reading, writing = pty.openpty()
    fcntl.ioctl(writing, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    with subprocess.Popen([sys.executable, "-c", WORK], stdout=writing, stderr=writing):
        os.close(writing)
        shown = b""
        try:
            while part := os.read(reading, 4096):
                shown += part
        except OSError:  # the end of a terminal
            pass
    os.close(reading)
    before, _, after = shown.decode().partition("an error")
    assert not before.strip() and "failing" not in after
    assert "working:  25%" in after and after.endswith(f"\r{' ' * 79}\r")
