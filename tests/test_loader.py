"""Files to batches: order, threads, randomness, and images that can't be read."""

import os
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ppcls.config import AugmentConfig
from ppcls.data.dataset import Dataset
from ppcls.data.decode import decode
from ppcls.data.files import Files
from ppcls.data.loader import eval_batch_indices, load_batches, train_batch_indices
from ppcls.data.opencv import cv2
from ppcls.data.seeding import random_state
from ppcls.data.transforms import EvalTransform, TrainTransform, resize_short_center_crop
from ppcls.errors import DataError
from ppcls.preprocessing import Preprocessing

ROOT = Path(__file__).parent.parent
SPEC = Preprocessing(16, 16, "bilinear", False, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
COUNT = 23


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """23 pictures of one colour each, their number times ten; labels are the number modulo five."""
    folder = tmp_path_factory.mktemp("pictures")
    paths = []
    for number in range(COUNT):
        paths.append(str(folder / f"{number:02} a.png"))
        Image.new("RGB", (20, 18), (number * 10, 0, 0)).save(paths[-1])
    return Dataset(Files(paths, "list.txt", np.arange(COUNT) + 1), np.arange(COUNT) % 5)


def files(count):
    """A source of files that are never read."""
    return Files([""] * count)


def load(dataset, batch_indices, transform=None, spec=SPEC, **options):
    options = {"num_workers": 3} | options
    return load_batches(dataset, batch_indices, transform or EvalTransform(spec), spec, **options)


def numbers_of(batch):
    return np.rint(batch.images[:, 0, 5, 5] * 25.5).astype(int).tolist()


def loading_threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("load")]


@pytest.mark.parametrize("num_workers", [1, 2, 16])
def test_batches_come_in_order_with_a_ragged_last_one(pictures, num_workers):
    batches = list(load(pictures, eval_batch_indices(COUNT, 5), num_workers=num_workers))
    assert [len(batch.images) for batch in batches] == [5, 5, 5, 5, 3]
    assert [number for batch in batches for number in numbers_of(batch)] == list(range(COUNT))
    for batch in batches:
        assert batch.images.dtype == np.float32 and batch.images.shape[1:] == (3, 16, 16)
        assert batch.images.flags.c_contiguous and np.isfinite(batch.images).all()
        assert batch.labels.tolist() == [number % 5 for number in batch.indices] and not batch.unreadable
    assert not loading_threads()


def test_any_order_is_kept(pictures):
    order = [np.array([7, 7, 0]), np.array([22]), np.array([3, 1])]
    batches = list(load(pictures, order))
    assert [numbers_of(batch) for batch in batches] == [[7, 7, 0], [22], [3, 1]]
    assert [batch.indices.tolist() for batch in batches] == [[7, 7, 0], [22], [3, 1]]


def test_without_labels_and_without_batches(pictures):
    unlabelled = Dataset(pictures.source)
    assert next(load(unlabelled, eval_batch_indices(COUNT, 5))).labels is None
    assert list(load(unlabelled, [])) == []


def test_the_whole_way_is_decode_resize_normalize(tmp_path):
    noise = np.random.RandomState(0).randint(0, 256, (60, 90, 3)).astype(np.uint8)
    path = tmp_path / "noise.jpg"
    Image.fromarray(noise).save(path)
    spec = Preprocessing(40, 32, "bicubic", True, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    (batch,) = load(Dataset.of_files([str(path)]), [np.array([0])], spec=spec)
    picture = resize_short_center_crop(decode(path.read_bytes()), spec).astype("float32")
    expected = (picture * np.float32(1 / 255) - np.float32(spec.mean)) / np.float32(spec.std)
    np.testing.assert_array_equal(batch.images[0], expected.transpose(2, 0, 1))


# Shares of the ranks.


def test_each_image_is_evaluated_once_whatever_the_number_of_ranks():
    for count in (0, 1, 2, 7, 16, 17):
        for batch_size in (1, 3, 8):
            for world in (1, 2, 3, 5):
                shares = [eval_batch_indices(count, batch_size, rank, world) for rank in range(world)]
                seen = [int(i) for share in shares for batch in share for i in batch]
                assert sorted(seen) == list(range(count))
                sizes = [[len(batch) for batch in share] for share in shares]
                assert all(size == batch_size for share in sizes for size in share[:-1])
                assert max(map(sum, sizes)) - min(map(sum, sizes)) <= 1


def test_the_ranks_train_on_different_images_in_steps_of_one_length():
    for count in (0, 5, 16, 17, 40):
        for batch_size in (1, 3, 8):
            for world in (1, 2, 3):
                shares = [
                    train_batch_indices(files(count), batch_size, seed=1, epoch=2, rank=r, world_size=world)
                    for r in range(world)
                ]
                steps = count // (batch_size * world)
                assert [len(share) for share in shares] == [steps] * world
                assert all(len(batch) == batch_size for share in shares for batch in share)
                seen = [int(i) for share in shares for batch in share for i in batch]
                assert len(set(seen)) == len(seen) == steps * batch_size * world and set(seen) <= set(
                    range(count)
                )


def test_a_global_batch_is_the_same_however_it_is_shared():
    whole = train_batch_indices(files(48), 12, seed=3, epoch=0)
    shares = [
        train_batch_indices(files(48), 4, seed=3, epoch=0, rank=rank, world_size=3) for rank in range(3)
    ]
    for step, batch in enumerate(whole):
        assert sorted(batch.tolist()) == sorted(i for share in shares for i in share[step].tolist())


def test_training_order_depends_on_seed_and_epoch():
    orders = {
        tuple(np.concatenate(train_batch_indices(files(40), 4, seed=seed, epoch=epoch)).tolist())
        for seed in range(3)
        for epoch in range(3)
    }
    assert len(orders) == 9 and tuple(range(40)) not in orders
    again = train_batch_indices(files(40), 4, seed=1, epoch=2)
    assert all(
        (a == b).all() for a, b in zip(again, train_batch_indices(files(40), 4, seed=1, epoch=2), strict=True)
    )


def test_few_images_are_used_again_until_there_are_enough_batches():
    for count, batch_size, world, least in ((24, 32, 1, 5), (3, 4, 2, 7), (10, 3, 1, 4), (100, 8, 3, 2)):
        shares = [
            train_batch_indices(
                files(count), batch_size, seed=1, epoch=2, rank=r, world_size=world, min_batches=least
            )
            for r in range(world)
        ]
        batches = max(least, count // (batch_size * world))
        assert [[len(batch) for batch in share] for share in shares] == [[batch_size] * batches] * world
        uses = np.concatenate([batch for share in shares for batch in share])
        assert len(set(uses.tolist())) == len(uses)  # each use has random numbers of its own
        times = np.bincount(uses % count, minlength=count)
        assert times.max() - times.min() <= 1 and times.sum() == batches * batch_size * world
    once = train_batch_indices(files(40), 4, seed=1, epoch=2)
    more = train_batch_indices(files(40), 4, seed=1, epoch=2, min_batches=25)
    assert np.array_equal(np.stack(once), np.stack(more[:10]))
    assert not np.array_equal(np.stack(once), np.stack(more[10:20]) - 40)


def test_the_stream_of_random_numbers_stays_what_it_is():
    """Another numpy must not change a run that is repeated."""
    assert random_state(1, 2, 3).randint(0, 10**9, 3).tolist() == [960712458, 886603062, 139033471]
    assert random_state(1, 2, 3).uniform(size=2).tolist() == [0.9736833050764491, 0.7064283604351523]
    assert random_state(1, 2).permutation(8).tolist() == [6, 4, 7, 1, 2, 5, 0, 3]


# Randomness of each image.


def train_batches(dataset, num_workers, epoch=0, seed=0):
    augment = AugmentConfig(crop_area=(0.2, 1.0), crop_ratio=(0.75, 1.5), flip=0.5)
    transform = TrainTransform(SPEC, augment, seed=seed, epoch=epoch)
    order = [np.arange(len(dataset))[::-1].copy(), np.arange(len(dataset))]
    return np.stack([batch.images for batch in load(dataset, order, transform, num_workers=num_workers)])


def test_an_image_is_augmented_alike_by_any_number_of_threads_and_in_any_order(noise):
    first = train_batches(noise, 1)
    np.testing.assert_array_equal(first[0][::-1], first[1])
    for num_workers in (2, 7):
        np.testing.assert_array_equal(train_batches(noise, num_workers), first)


def test_augmentation_differs_between_images_epochs_and_seeds(noise):
    same = Dataset.of_files([noise.name(0)] * 8)
    first = train_batches(same, 2)
    assert len({image.tobytes() for image in first[1]}) == 8
    for other in (train_batches(same, 2, epoch=1), train_batches(same, 2, seed=1)):
        assert not {image.tobytes() for image in first[1]} & {image.tobytes() for image in other[1]}


def test_a_further_use_of_an_image_is_augmented_anew(noise):
    transform = TrainTransform(SPEC, AugmentConfig(crop_area=(0.2, 1.0)), seed=0, epoch=0)
    labelled = Dataset(noise.source, np.arange(8))
    (batch,) = load(labelled, [np.array([3, 3 + 8, 3 + 80, 5])], transform)
    assert batch.indices.tolist() == batch.labels.tolist() == [3, 3, 3, 5]
    assert len({image.tobytes() for image in batch.images}) == 4


def test_half_the_images_are_flipped(noise):
    spec = Preprocessing(40, 40, "bilinear", False, (0.0,) * 3, (1.0,) * 3)
    picture = np.zeros((40, 40, 3), np.uint8)
    picture[:, 20:] = 255
    flipped = []
    for probability in (0.0, 0.5, 1.0):
        augment = AugmentConfig(crop_area=(1.0, 1.0), crop_ratio=(1.0, 1.0), flip=probability)
        transform = TrainTransform(spec, augment, seed=0, epoch=0)
        flipped.append(sum(int(transform(picture, index)[0, 0, 0] == 255) for index in range(400)))
    assert flipped[0] == 0 and 160 < flipped[1] < 240 and flipped[2] == 400


# Images that can't be read, and errors.


@pytest.mark.parametrize("flip", [0.0, 1.0])
def test_a_centre_crop_is_the_evaluations(flip):
    spec = Preprocessing(24, 16, "bilinear", False, (0.0,) * 3, (1.0,) * 3)
    image = random_state(7).randint(0, 256, (30, 50, 3)).astype(np.uint8)
    config = AugmentConfig(center_crop=True, crop_area=(0.1, 0.2), flip=flip)
    found = TrainTransform(spec, config, seed=0, epoch=0)(image, 0)
    expected = EvalTransform(spec)(image, 0)
    assert (found == (expected[:, ::-1] if flip else expected)).all()


@pytest.fixture
def damaged(pictures, tmp_path):
    """Images 2 and 3 of the pictures are cut off and missing, 4 is a folder, 12 is a text."""
    paths = [pictures.name(index) for index in range(COUNT)]
    for index, name in ((2, "cut.png"), (3, "missing.png"), (4, "folder.png"), (12, "text.png")):
        paths[index] = str(tmp_path / name)
    (tmp_path / "cut.png").write_bytes(pictures.read(2)[:60])
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "text.png").write_text("no image")
    return Dataset(Files(paths, "list.txt", np.arange(COUNT) + 1), pictures.labels)


def test_an_unreadable_image_stops_the_run_with_file_line_and_reason(damaged):
    batches = load(damaged, eval_batch_indices(COUNT, 2))
    assert numbers_of(next(batches)) == [0, 1]
    with pytest.raises(DataError) as caught:
        next(batches)
    message = str(caught.value)
    assert "cut.png (list.txt, line 3)" in message and "data.on_error=skip" in message
    assert not loading_threads()


def test_skipped_images_are_counted_and_leave_no_gap(damaged):
    batches = list(load(damaged, eval_batch_indices(COUNT, 2), on_error="skip"))
    assert [number for batch in batches for number in numbers_of(batch)] == [
        number for number in range(COUNT) if number not in (2, 3, 4, 12)
    ]
    for batch in batches:
        assert batch.indices.tolist() == numbers_of(batch)
        assert batch.labels.tolist() == [number % 5 for number in batch.indices]
    assert len(batches[1].images) == 0 and batches[1].images.shape == (0, 3, 16, 16)
    unreadable = [item for batch in batches for item in batch.unreadable]
    assert [item.index for item in unreadable] == [2, 3, 4, 12]
    assert unreadable[0].where.endswith("cut.png (list.txt, line 3)") and unreadable[0].name == damaged.name(
        2
    )
    assert [item.reason for item in unreadable[1:3]] == ["No such file or directory", "Is a directory"]
    assert "image" in unreadable[3].reason and sorted(unreadable[::-1]) == unreadable


def test_a_picture_too_thin_to_resize_counts_as_unreadable(tmp_path):
    Image.new("RGB", (6000, 1)).save(tmp_path / "thin.png")
    spec = Preprocessing(256, 224, "bilinear", False, (0.0,) * 3, (1.0,) * 3)
    dataset = Dataset.of_files([str(tmp_path / "thin.png")])
    (batch,) = load(dataset, [np.array([0])], spec=spec, on_error="skip")
    assert "6000 x 1" in batch.unreadable[0].reason


def no_memory(how):
    if how == "numpy":
        raise MemoryError
    cv2.resize(np.zeros((8, 8, 3), np.uint8), (10**6, 10**6))  # 3 TB


@pytest.mark.parametrize("how", ["numpy", "OpenCV"])
def test_an_image_that_takes_too_much_memory_counts_as_unreadable(pictures, how):
    def transform(image, index):
        return no_memory(how) if index == 1 else EvalTransform(SPEC)(image, index)

    (batch,) = load(pictures, [np.arange(3)], transform, on_error="skip")
    assert numbers_of(batch) == [0, 2] and "out of memory at 20 x 18" in batch.unreadable[0].reason


def test_a_file_too_large_to_be_read_counts_as_unreadable(pictures, monkeypatch):
    read = Files.read
    monkeypatch.setattr(
        Files, "read", lambda files, index: no_memory("numpy") if index == 1 else read(files, index)
    )
    (batch,) = load(pictures, [np.arange(3)], on_error="skip")
    assert numbers_of(batch) == [0, 2] and "out of memory" in batch.unreadable[0].reason


def test_other_errors_of_opencv_reach_the_caller(pictures):
    with pytest.raises(cv2.error):
        list(load(pictures, [np.arange(3)], lambda image, index: cv2.resize(image, (0, 0)), on_error="skip"))


def test_warnings_of_pillow_name_file_and_line(pictures, monkeypatch):
    monkeypatch.setattr("PIL.Image.MAX_IMAGE_PIXELS", 20 * 18 - 1)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        list(load(pictures, [np.arange(3)]))
    names = {str(warning.message).split(": ")[0] for warning in caught}
    assert names == {pictures.where(index) for index in range(3)}


@pytest.mark.parametrize("on_error", ["fail", "skip"])
def test_an_unexpected_error_reaches_the_caller_as_it_is(pictures, on_error):
    def transform(image, index):
        if index == 7:
            raise ZeroDivisionError("a mistake in the code")
        return EvalTransform(SPEC)(image, index)

    batches = load(pictures, eval_batch_indices(COUNT, 5), transform, on_error=on_error)
    assert len(next(batches).images) == 5
    with pytest.raises(ZeroDivisionError, match="a mistake in the code"):
        next(batches)
    assert not loading_threads()


def test_closing_early_leaves_no_thread_and_reads_no_further(pictures):
    seen = []

    def transform(image, index):
        seen.append(index)
        time.sleep(0.01)
        return EvalTransform(SPEC)(image, index)

    order = [np.array([0]), np.zeros(300, int), *eval_batch_indices(COUNT, 1)]
    batches = load(pictures, order, transform)
    next(batches)
    assert loading_threads()
    batches.close()
    assert not loading_threads() and len(seen) < 100


def test_an_error_of_the_caller_leaves_no_thread(pictures):
    def use():
        for _ in load(pictures, eval_batch_indices(COUNT, 5)):
            raise KeyError("the caller's")

    with pytest.raises(KeyError):
        use()
    assert not loading_threads()


def test_batches_are_prepared_ahead_but_not_without_limit(pictures):
    started = []

    def transform(image, index):
        started.append(index)
        return EvalTransform(SPEC)(image, index)

    batches = load(pictures, eval_batch_indices(COUNT, 2), transform)
    next(batches)
    deadline = time.monotonic() + 5
    while len(started) < 6 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.05)
    assert len(started) == 6  # the one that is used, and two ahead
    batches.close()


def test_a_kept_batch_is_not_written_again(pictures):
    batches = list(load(pictures, eval_batch_indices(COUNT, 4)))
    assert numbers_of(batches[0]) == [0, 1, 2, 3]


def test_the_loader_imports_no_paddle(pictures):
    code = f"""
import sys
import numpy as np
from ppcls.data.dataset import Dataset
from ppcls.data.open import open_split
from ppcls.data.loader import eval_batch_indices, load_batches
from ppcls.data.transforms import EvalTransform
from ppcls.preprocessing import Preprocessing
spec = Preprocessing(16, 16, "bilinear", False, (0.0,) * 3, (1.0,) * 3)
dataset = Dataset.of_files([{pictures.name(0)!r}])
batches = load_batches(dataset, eval_batch_indices(1, 1), EvalTransform(spec), spec, num_workers=1)
assert len(next(batches).images) == 1
print([name for name in sys.modules if name.split(".")[0] in ("paddle", "torch", "visualdl")])
"""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    run = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == "[]"
