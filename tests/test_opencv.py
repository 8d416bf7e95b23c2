"""OpenCV itself: the packages that bring it, and its threads."""

import os
import subprocess
import sys

import pytest
from helpers import ROOT

from ppcls.data.opencv import cv2


def import_with_fake_cv2(folder, source):
    (folder / "cv2.py").write_text(source, encoding="utf-8")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)])}
    code = """
import ppcls.data, ppcls.errors
try:
    import ppcls.data.loader
except ppcls.errors.DataError as error:
    print(error)
"""
    run = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    return run.stdout


@pytest.mark.parametrize(
    "reason",
    ["libGL.so.1: cannot open shared object file: No such file or directory", "No module named 'cv2'"],
)
def test_opencv_that_cannot_be_loaded_names_the_headless_package(tmp_path, reason):
    message = import_with_fake_cv2(tmp_path, f"raise ImportError({reason!r})")
    assert reason in message and "opencv-python-headless" in message


def test_an_opencv_too_old_is_named(tmp_path):
    message = import_with_fake_cv2(tmp_path, "__version__ = '4.10.0'")
    assert "4.11" in message and "Received: 4.10.0" in message


def test_opencv_uses_one_thread():
    assert cv2.getNumThreads() == 1
