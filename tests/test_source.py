"""A source other than files: one class, which the loader, the evaluation, the report, the check and the
benchmark take as it is. Nothing but its `read` opens an image."""

import csv
import gc
import io
import json
import tracemalloc
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest
from helpers import predictor_of
from PIL import Image

from ppcls.benchmarks.data import measure_data, read_images
from ppcls.data.check import find_problems, inspect_images
from ppcls.data.dataset import Dataset
from ppcls.data.files import Files
from ppcls.data.loader import eval_batch_indices, load_batch, load_batches
from ppcls.data.source import Source
from ppcls.data.transforms import EvalTransform
from ppcls.data.valid_labels import with_valid_labels
from ppcls.errors import DataError
from ppcls.evaluation.evaluate import evaluate
from ppcls.evaluation.report import thumbnail, write_report
from ppcls.preprocessing import Preprocessing

PREPROCESSING = Preprocessing(8, 8, "bilinear", False, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
CLASSES = 6


@dataclass(frozen=True)
class Memory:
    """Named images in memory; None is one that cannot be read."""

    images: Sequence[tuple[str, bytes | None]]

    def __len__(self) -> int:
        return len(self.images)

    def read(self, index: int) -> bytes:
        data = self.images[index][1]
        if data is None:
            raise OSError("the connection was closed")
        return data

    def name(self, index: int) -> str:
        return self.images[index][0]

    def where(self, index: int) -> str:
        return f"{self.images[index][0]} of the memory"

    def identity(self, root: str | None) -> bytes:
        return "\n".join(name for name, _ in self.images).encode()

    def select(self, indices: Sequence[int]) -> "Memory":
        return Memory([self.images[index] for index in indices])

    def shuffle(self, indices: np.ndarray, random: np.random.RandomState, parts: int = 1) -> np.ndarray:
        return indices[random.permutation(len(indices))]

    @property
    def is_remote(self) -> bool:
        return False

    def prefetch(self, indices: Sequence[int]) -> None:
        pass


def encoded(label, seed=0):
    """A picture whose mean is 40 times the label."""
    noise = np.random.RandomState(seed).randint(-3, 4, (8, 8, 1)).repeat(3, 2)
    buffer = io.BytesIO()
    Image.fromarray(np.clip(20 + noise + 40 * label, 0, 255).astype(np.uint8)).save(buffer, "png")
    return buffer.getvalue()


@pytest.fixture
def dataset():
    """12 pictures, two of each class, of which number 4 cannot be read, 7 is no image, and 9 equals 3."""
    labels = np.arange(12) % CLASSES
    images = [encoded(label, seed) for seed, label in enumerate(labels)]
    images[4], images[7], images[9] = None, b"no image", images[3]
    source: Source = Memory([(f"shard/{number}.png", image) for number, image in enumerate(images)])
    return Dataset(source, labels.astype(np.int64))


def nearest(images):
    value = (images.mean(axis=(1, 2, 3)) * 255 - 20) / 40
    return -np.abs(value[:, None] - np.arange(CLASSES)).astype(np.float32)


def test_batches_are_loaded(dataset):
    options = (EvalTransform(PREPROCESSING), PREPROCESSING)
    indices = eval_batch_indices(len(dataset), 5)
    batches = list(load_batches(dataset, indices, *options, num_workers=2, on_error="skip"))
    assert [len(batch.images) for batch in batches] == [4, 4, 2]
    assert [nearest(batch.images).argmax(1).tolist() for batch in batches] == [
        batch.labels.tolist() for batch in batches
    ]
    unreadable = [item for batch in batches for item in batch.unreadable]
    assert [(item.index, item.name) for item in unreadable] == [(4, "shard/4.png"), (7, "shard/7.png")]
    assert unreadable[0].reason == "the connection was closed"
    with pytest.raises(DataError, match="shard/4.png of the memory.*the connection was closed"):
        load_batch(dataset, np.array([3, 4]), *options, on_error="fail")


def test_it_is_evaluated_with_a_report(dataset, tmp_path):
    predictor = predictor_of(nearest, preprocessing=PREPROCESSING, num_classes=CLASSES)
    result = evaluate(predictor, dataset, on_error="skip", keep_samples=True)
    assert (result.count, result.top1) == (10, 1.0)
    assert [item["file"] for item in result.to_dict()["skipped_files"]] == [
        "shard/4.png of the memory",
        "shard/7.png of the memory",
    ]
    result.samples["label"][2] = 0  # so that there is an error to show
    options = {"num_classes": CLASSES, "classes": None, "title": "x", "about": {}}
    write_report(tmp_path, result, dataset, PREPROCESSING, **options)
    with (tmp_path / "predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["file"] for row in rows][:5] == [f"shard/{number}.png" for number in (0, 1, 2, 3, 5)]
    page = (tmp_path / "index.html").read_text()
    assert "data:image/jpeg" in page and "2.png" in page
    assert thumbnail(dataset, 2, PREPROCESSING) is not None
    assert thumbnail(dataset, 4, PREPROCESSING) is None and thumbnail(dataset, 7, PREPROCESSING) is None


def test_it_is_checked(dataset):
    found = inspect_images(dataset, 2)
    findings = find_problems([found])
    assert [text.split(": ")[0] for text in findings.unreadable.first] == [dataset.where(4), dataset.where(7)]
    assert findings.duplicates.first == ["shard/3.png of the memory as 3; shard/9.png of the memory as 3"]
    assert found.smallest == (8, 8)


def test_a_check_keeps_16_bytes_of_an_image():
    """The difference between many and few, as whatever is kept once does not count."""
    few, many = 500, 5500
    images = [(str(number), b"P6 8 8 255\n" + number.to_bytes(2, "big") * 96) for number in range(many)]
    dataset = Dataset(Memory(images))
    sizes = []
    tracemalloc.start()
    try:
        for count in (few, few, many):  # the first one for imports
            before = tracemalloc.get_traced_memory()[0]
            found = inspect_images(dataset.select(range(count)), 2)
            gc.collect()
            sizes.append(tracemalloc.get_traced_memory()[0] - before)
    finally:
        tracemalloc.stop()
    assert sizes[2] - sizes[1] < 35 * (many - few)
    assert len(find_problems([found])) == 0 and found.short_sides == {8: many}


def test_it_is_measured(dataset):
    readable = dataset.select([0, 1, 2, 7])
    images, left_out = read_images(readable)
    assert images == [dataset.read(index) for index in range(3)] and left_out == 1
    assert measure_data(images, 8, 8, 2, 1)["rows"]["bilinear"]["images_per_second"]["median"] > 0
    with pytest.raises(DataError, match="shard/4.png of the memory.*the connection was closed"):
        read_images(dataset)


def test_valid_labels_are_matched_by_the_name(dataset, tmp_path):
    values = {f"{number}.png": [number % CLASSES] if number % 2 else [] for number in range(12)}
    (tmp_path / "labels.json").write_text(json.dumps(values))
    kept = with_valid_labels(dataset, str(tmp_path / "labels.json"), CLASSES)
    assert [kept.name(index) for index in range(len(kept))] == [f"shard/{n}.png" for n in (1, 3, 5, 7, 9, 11)]


def test_a_selection_keeps_labels_and_places(dataset):
    part = dataset.select([5, 2])
    assert part.labels.tolist() == [5, 2] and part.read(1) == dataset.read(2)
    files = Dataset(Files(["a.jpg", "b.jpg", "c.jpg"], "list.txt", np.array([1, 3, 4])))
    assert files.select([2, 0]).where(0) == "c.jpg (list.txt, line 4)"
    assert files.select([]).labels is None and len(files.select([])) == 0


def test_the_digest_is_the_one_that_states_of_runs_hold():
    """Hexadecimal digits from before there were sources."""
    paths, labels = ["/data/a.jpg", "/data/b/ж 1.jpg"], np.array([0, 7], np.int64)
    dataset = Dataset.of_files(paths, labels)
    assert dataset.digest("/data/") == "96d9d8c381edad6f"
    moved = Dataset.of_files([path.replace("/data", "/elsewhere") for path in paths], labels)
    assert moved.digest("/elsewhere") == "96d9d8c381edad6f"
    assert Dataset.of_files(paths).digest("/data") == "fcd5fc634d172d68"
    assert Dataset.of_files(["a.jpg"], labels[:1]).digest(None) == "c0a2f94a9f1f5f71"


def test_the_digest_changes_with_names_order_and_labels(dataset):
    others = [dataset.select([1, 0]), dataset.select([0, 1]), Dataset(dataset.select([0, 1]).source)]
    assert len({other.digest(None) for other in [dataset, *others]}) == 4
