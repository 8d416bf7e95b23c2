"""`ppcls data check`: everything wrong with the images of lists and folders is found and named."""

import os
import re
import subprocess
import sys

import numpy as np
import pytest
from helpers import ROOT, run_data, write_picture

from ppcls.data.__main__ import main
from ppcls.data.check import _equal_groups, find_problems, inspect_images
from ppcls.data.open import open_path


def test_a_sound_folder_is_clean(photos):
    run = run_data("check", photos)
    assert run.returncode == 0, run.stdout + run.stderr
    for part in ("44 images", "classes: 4", "1 (one)", "30 (a dog)", "7 x 9"):
        assert part in run.stdout
    assert not any(word in run.stdout for word in ("conflicts", "leaks", "duplicates"))


@pytest.fixture
def spoilt(photos):
    """Two lists: a cut, a missing and an empty file, a duplicate, a conflict and a leak."""
    cat = photos / "cat"
    (cat / "0 x.png").write_bytes((cat / "0 x.png").read_bytes()[:70])
    (cat / "1 x.png").unlink()
    (cat / "2 x.png").write_bytes(b"")
    (cat / "4 x.png").write_bytes((cat / "3 x.png").read_bytes())
    (photos / "bird" / "0 x.png").write_bytes((cat / "5 x.png").read_bytes())
    (photos / "leak.png").write_bytes((cat / "6 x.png").read_bytes())
    (photos / "train.txt").write_text(
        "".join(f"cat/{number} x.png 1\n" for number in range(11)) + "bird/0 x.png 0\n"
    )
    (photos / "val.txt").write_text("\nleak.png 1\nbird/1 x.png 0\n")
    return photos


def test_everything_wrong_is_found_and_named(spoilt):
    found = [inspect_images(open_path(spoilt / name), num_workers=3) for name in ("train.txt", "val.txt")]
    findings = find_problems(found)
    train, val = spoilt / "train.txt", spoilt / "val.txt"
    cat = spoilt / "cat"
    assert [text.split(": ")[0] for text in findings.unreadable.first] == [
        f"{cat / f'{number} x.png'} ({train}, line {number + 1})" for number in range(3)
    ]
    reasons = [text.rsplit(": ")[1] for text in findings.unreadable.first[1:]]
    assert reasons[0] == "No such file or directory" and "empty" in reasons[1]
    assert findings.conflicts.first == [
        f"{cat / '5 x.png'} ({train}, line 6) as 1; {spoilt / 'bird' / '0 x.png'} ({train}, line 12) as 0"
    ]
    assert findings.leaks.first == [
        f"{cat / '6 x.png'} ({train}, line 7) as 1; {spoilt / 'leak.png'} ({val}, line 2) as 1"
    ]
    assert findings.duplicates.first == [
        f"{cat / '3 x.png'} ({train}, line 4) as 1; {cat / '4 x.png'} ({train}, line 5) as 1",
        *findings.conflicts.first,
    ]
    assert [(len(one.dataset), one.unreadable.count) for one in found] == [(12, 3), (2, 0)]
    assert len(findings) == 3 + 1 + 1 + 2


def test_a_large_group_names_its_first_images(spoilt, monkeypatch):
    monkeypatch.setattr("ppcls.data.check.MOST_MEMBERS", 1)
    findings = find_problems([inspect_images(open_path(spoilt / "train.txt"), num_workers=2)])
    first = f"{spoilt / 'cat' / '3 x.png'} ({spoilt / 'train.txt'}, line 4) as 1; and 1 more"
    assert findings.duplicates.first[0] == first and findings.conflicts.count == 1


def test_of_many_findings_the_first_are_listed(spoilt, monkeypatch, capsys):
    monkeypatch.setattr("ppcls.data.check.MOST_TEXTS", 2)
    assert main(["check", str(spoilt / "train.txt"), str(spoilt / "train.txt")]) == 1
    printed = capsys.readouterr().out
    unreadable, leaks = printed.split("unreadable: 6\n")[1], printed.split(": 7\n")[1]
    assert [line.count(", line ") for line in unreadable.splitlines()[:2]] == [1, 1]
    assert unreadable.splitlines()[2] == "  and 4 more" and leaks.splitlines()[2] == "  and 5 more"


def test_equal_bytes_are_grouped_by_their_first_image():
    random = np.random.RandomState(0)
    digests = random.randint(0, 4, (60, 2)).astype(np.uint64)
    expected = {}
    for position, row in enumerate(digests.tolist()):
        expected.setdefault(tuple(row), []).append(position)
    expected.pop((0, 0))  # unreadable images
    groups = [group.tolist() for group in _equal_groups(digests)]
    assert groups == [group for group in expected.values() if len(group) > 1]
    assert list(_equal_groups(digests[:0])) == [] == list(_equal_groups(digests[:1]))


def test_the_tool_prints_what_it_found(spoilt):
    run = run_data("check", spoilt / "train.txt", spoilt / "val.txt", "--num-workers", 2)
    assert run.returncode == 1 and "Traceback" not in run.stderr
    for kind, count in (("unreadable", 3), ("conflicts", 1), ("leaks", 1), ("duplicates", 2)):
        assert re.search(rf"^{kind}\b.*: {count}$", run.stdout, re.MULTILINE)
    assert "train.txt, line 3)" in run.stdout
    assert run_data("check", spoilt / "val.txt").returncode == 0


def write_corrupt_jpeg(path):
    """A JPEG of whole headers, with a marker in the middle of its pixels: OpenCV reads it."""
    write_picture(path, 7, size=(150, 200))
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2] + b"\xff\xc4\0\1" + data[len(data) // 2 + 4 :])


def test_corrupt_pixels_that_opencv_passes_over_are_found(photos):
    write_corrupt_jpeg(photos / "cat" / "corrupt.jpg")
    write_picture(photos / "cat" / "sound.jpg", 8, size=(150, 200))
    run = run_data("check", photos)
    assert run.returncode == 1 and "0 of them unreadable" in run.stdout and "Traceback" not in run.stderr
    (line,) = (line for line in run.stdout.splitlines() if ".jpg" in line)
    assert line.startswith(f"  {photos / 'cat' / 'corrupt.jpg'}: ")
    assert re.search(r"^damaged.*: 1$", run.stdout, re.MULTILINE)


@pytest.mark.parametrize(
    "error", [AttributeError("odd"), MemoryError(), subprocess.CalledProcessError(1, "gs")]
)
def test_an_odd_error_of_a_decoder_does_not_end_the_check(photos, monkeypatch, error):
    from PIL import ImageFile

    load = ImageFile.ImageFile.load

    def fail(image):
        if image.size == (1, 2):
            raise error
        return load(image)

    write_picture(photos / "cat" / "odd.png", 5, size=(2, 1))
    monkeypatch.setattr(ImageFile.ImageFile, "load", fail)
    dataset = open_path(photos)
    (text,) = inspect_images(dataset, 2).unreadable.first
    assert text.startswith(f"{photos / 'cat' / 'odd.png'}: ")


def test_a_file_too_large_to_be_read_does_not_end_the_check(photos, monkeypatch):
    def read(files, index):
        raise MemoryError

    monkeypatch.setattr("ppcls.data.files.Files.read", read)
    unreadable = inspect_images(open_path(photos), 2).unreadable
    assert unreadable.count == 44 and all("out of memory" in text for text in unreadable.first)


def test_warnings_name_each_image(photos, monkeypatch, recwarn):
    monkeypatch.setattr("PIL.Image.MAX_IMAGE_PIXELS", 9 * 7 - 1)
    dataset = open_path(photos)
    inspect_images(dataset, 2)
    named = {str(warning.message).split(": ")[0] for warning in recwarn}
    assert named == {dataset.where(index) for index in range(44)}


def test_the_same_line_twice_is_a_duplicate(photos):
    (photos / "twice.txt").write_text("cat/0 x.png 0\ncat/0 x.png 0\n")
    dataset = open_path(photos / "twice.txt")
    findings = find_problems([inspect_images(dataset, 1)])
    assert findings.duplicates.count == 1 and len(findings) == 1


def test_numbers_of_a_list_are_not_compared_with_names_of_folders(photos):
    (photos / "list.txt").write_text("cat/0 x.png 2\n")
    datasets = map(open_path, (photos / "list.txt", photos))
    findings = find_problems([inspect_images(dataset, 2) for dataset in datasets])
    assert findings.leaks.count == 1 and not findings.conflicts.count


def test_folders_of_images_without_labels(tmp_path):
    write_picture(tmp_path / "1.png", 1)
    write_picture(tmp_path / "thumbnails" / "2.png", 2, size=(3, 5))
    dataset = open_path(tmp_path)
    assert dataset.labels is None and len(dataset) == 2
    found = inspect_images(dataset, 1)
    assert (found.smallest, found.largest, found.median_short_side) == ((3, 5), (9, 7), (3 + 7) // 2)


def test_an_empty_class_folder_is_found(photos):
    (photos / "fish" / "deep").mkdir(parents=True)
    run = run_data("check", photos)
    assert run.returncode == 1, run.stderr
    assert "without an image: 1\n  fish\n" in run.stdout and "classes: 4 of 5" in run.stdout


def test_a_class_without_an_image_in_a_list_is_a_line(photos):
    (photos / "list.txt").write_text("cat/0 x.png 2\nbird/0 x.png 0\n")
    run = run_data("check", photos / "list.txt")
    assert run.returncode == 0, run.stdout
    assert "classes: 2 of 3; fewest images: 1 (0), most: 1 (0); 1 without an image: 1\n" in run.stdout


def test_more_files_than_are_handed_out_at_a_time(photos, monkeypatch):
    monkeypatch.setattr("ppcls.data.each_image.CHUNK", 7)
    dataset = open_path(photos)
    done = []
    found = inspect_images(dataset, 3, done.append)
    assert sum(done) == 44 == len(np.unique(found.digests, axis=0))
    assert found.short_sides == {7: 44} and found.smallest == found.largest == (9, 7)


def test_check_without_opencv_says_what_to_install(photos, tmp_path):
    (tmp_path / "fake").mkdir()
    (tmp_path / "fake" / "cv2.py").write_text(
        "raise ImportError('libGL.so.1: cannot open shared object file')"
    )
    run = subprocess.run(
        [sys.executable, "-m", "ppcls.data", "check", str(photos)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path / "fake"), str(ROOT)])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 2 and run.stderr.startswith("error: ") and "opencv-python-headless" in run.stderr
