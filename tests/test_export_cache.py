"""The exports that the tools keep for themselves."""

import os
import threading
import time
from pathlib import Path

import pytest
from helpers import ARTIFACT

from ppcls.errors import ExportError
from ppcls.inference.cache import KEPT, cached_export, find_cached


class Exporter:
    """Writes a folder that can be read, and counts how often."""

    def __init__(self, seconds: float = 0) -> None:
        self.count, self.seconds = 0, seconds

    def __call__(self, folder: Path) -> None:
        self.count += 1
        time.sleep(self.seconds)
        folder.mkdir()
        for sizes in ARTIFACT.files.values():
            for name, size in sizes.items():
                (folder / name).write_bytes(b"x" * size)
        ARTIFACT.write(folder)


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("PPCLS_HOME", str(tmp_path))
    return tmp_path / "exported"


def test_the_second_run_exports_nothing(home):
    export = Exporter()
    assert find_cached("a1") is None
    folder = cached_export("a1", export)
    assert cached_export("a1", export) == find_cached("a1") == folder and export.count == 1
    assert folder.parent == home
    assert cached_export("a2", export) != folder and export.count == 2


def test_a_damaged_export_is_made_again(home):
    export = Exporter()
    folder = cached_export("a", export)
    (folder / "model.onnx").write_bytes(b"")
    (folder / "other").write_bytes(b"")
    assert find_cached("a") is None
    assert cached_export("a", export) == folder and export.count == 2
    assert (folder / "model.onnx").stat().st_size == 5 and not (folder / "other").exists()


def test_an_export_that_fails_leaves_nothing(home):
    def fail(folder):
        raise ExportError("the converter")

    with pytest.raises(ExportError, match="the converter"):
        cached_export("a", fail)
    export = Exporter()
    cached_export("a", export)
    assert export.count == 1


def test_runs_side_by_side_export_once(home):
    export = Exporter(seconds=0.2)
    found = []
    threads = [threading.Thread(target=lambda: found.append(cached_export("a", export))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert export.count == 1 and len(set(found)) == 1 and len(found) == 4


def test_the_least_recently_used_go_first(home):
    export = Exporter()
    folders = [cached_export(f"{number}", export) for number in range(KEPT)]
    for age, folder in enumerate(folders):
        os.utime(folder, (0, 1e9 + age))
    assert cached_export("0", export) == folders[0]  # used again: now folders[1] is the oldest ...
    assert find_cached("1") == folders[1]  # ... and now folders[2]
    newest = cached_export("new", export)
    there = {path for path in home.iterdir() if path.is_dir()}
    assert there == {*folders, newest} - {folders[2]}


def test_an_export_that_another_process_removes_meanwhile_does_no_harm(home, monkeypatch):
    home.mkdir()
    for name in ("gone", ".gone"):  # still a folder at the first look, away at the second
        (home / name).symlink_to(home / "nowhere")
    is_dir = Path.is_dir
    monkeypatch.setattr(Path, "is_dir", lambda path: path.name.endswith("gone") or is_dir(path))
    assert find_cached("a") is None
    assert cached_export("a", Exporter()) == find_cached("a")


def test_what_killed_exports_left_is_removed_after_a_day(home):
    home.mkdir()
    for name, hours in ((".old.x1", 25), (".new.x2", 23)):
        (home / name).mkdir()
        (home / name / "model.onnx").write_bytes(b"")
        os.utime(home / name, (0, time.time() - 3600 * hours))
    cached_export("a", Exporter())
    assert not (home / ".old.x1").exists() and (home / ".new.x2").exists()
