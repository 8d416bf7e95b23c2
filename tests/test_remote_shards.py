"""Shards at a URL: the bytes of local ones, and a clear error or no effect whatever the network does."""

import json
import os
import pickle
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor, wait

import numpy as np
import pytest
from helpers import ROOT, predictor_of
from test_shards import PREPROCESSING, batches, changed, jpeg, tar_of

from ppcls.config_files import parse_config
from ppcls.data.__main__ import main
from ppcls.data.open import open_path
from ppcls.data.remote import Blocks, DiskCache, RemoteFiles
from ppcls.data.shards import open_shards
from ppcls.errors import DataError, PpclsError
from ppcls.training.batches import batches_of_steps, count_steps

IMAGES, SHARDS = 120, 3


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with three shards that a server gives, and its URL."""
    folder = tmp_path_factory.mktemp("remote")
    for shard in range(SHARDS):
        numbers = range(shard * 40, shard * 40 + 40)
        files = [
            file
            for number in numbers
            for file in (
                (f"{number:03}.jpg", jpeg(number, 24)),
                (f"{number:03}.cls", str(number % 7).encode()),
            )
        ]
        tar_of(folder / f"s-{shard}.tar", files)
    command = [sys.executable, str(ROOT / "tests" / "range_server.py"), str(folder), "0.001"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    yield folder, f"http://127.0.0.1:{int(server.stdout.readline())}"
    server.kill()
    server.wait()


@pytest.fixture
def served(place, tmp_path, monkeypatch):
    """The folder, the URL and the index of its shards, before anything fails. Pauses are short."""
    folder, url = place
    (folder / "faults.json").unlink(missing_ok=True)
    monkeypatch.setattr("ppcls.data.remote.FIRST_PAUSE", 0.01)
    monkeypatch.setattr("ppcls.data.shards.BLOCK_BYTES", 20_000)
    assert main(["index", url + "/s-{0..2}.tar", "--output", str(tmp_path / "far.safetensors")]) == 0
    return folder, url, tmp_path / "far.safetensors"


def fail(folder, **faults):
    (folder / "faults.json").write_text(json.dumps(faults))


def test_images_are_those_of_local_shards(served, tmp_path):
    folder, url, index = served
    main(["index", str(folder)])
    near, far = open_path(folder), open_path(index)
    assert far.labels.tolist() == near.labels.tolist() == [number % 7 for number in range(IMAGES)]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(far.read, range(IMAGES))) == [near.read(number) for number in range(IMAGES)]
    assert far.where(50) == f"050.jpg in {url}/s-1.tar"
    moved = open_shards(folder / "index.safetensors", url)  # indexed here, read there
    assert moved.read(77) == near.read(77) and moved.where(77).startswith("077.jpg in http")


def test_neighbours_come_by_one_request(served):
    folder, _, index = served
    fail(folder, log=True)
    far = open_path(index)
    assert sum(len(batch.images) for batch in batches(far, "fail")) == IMAGES
    requests = (folder / "requests.txt").read_text().splitlines()
    (folder / "requests.txt").unlink()
    assert 3 * SHARDS <= len(set(requests)) == len(requests) <= IMAGES // 6


def test_the_order_keeps_neighbours_together_and_mixes_them(served, monkeypatch):
    monkeypatch.setattr("ppcls.data.shards.WINDOW", 3)
    source = open_path(served[2]).source
    order = source.shuffle(np.arange(IMAGES), np.random.RandomState(0), 2)
    again = source.shuffle(np.arange(IMAGES), np.random.RandomState(0), 2)
    assert order.tolist() == again.tolist() and sorted(order) == list(range(IMAGES))
    assert order.tolist() != source.shuffle(np.arange(IMAGES), np.random.RandomState(1), 2).tolist()
    blocks = [
        source._span(source._shard(number), number) + (source._shard(number),) for number in range(IMAGES)
    ]
    for part in range(2):  # each of two processes needs few blocks, not all of them
        mine = order[part::2]
        assert len({blocks[number] for number in mine}) < 0.75 * len(set(blocks))
        assert (np.diff(mine[:20]) == 1).mean() < 0.5  # not in the order of the tar
    window = order[0::2][:20]
    assert len({blocks[number] for number in window}) <= 4


@pytest.mark.parametrize("ends_in_a_pass", [False, True])
def test_what_comes_after_an_epoch_is_fetched_during_it(served, monkeypatch, ends_in_a_pass):
    """Unless the run ends there. Memory does not hold the whole set."""
    folder, _, index = served
    monkeypatch.setattr("ppcls.data.shards.WINDOW", 2)
    monkeypatch.setattr("ppcls.data.loader.IMAGES_AHEAD", 32)
    config = parse_config({"model": {"name": "EfficientNetB0_small"}}, ["data.batch_size=8"])
    steps = count_steps(config, IMAGES)
    end = steps - 6 if ends_in_a_pass else steps
    batches_there = []
    for run_end in (end, 2 * steps):
        far = open_path(index)
        blocks = far.source.shelf._blocks = Blocks(limit=150_000)

        def steps_to(end, first, run_end, far=far):
            options = {"first": first, "end": end, "run_end": run_end, "num_workers": 2}
            return batches_of_steps(config, PREPROCESSING, far, **options)

        assert len(list(steps_to(end, 0, run_end))) == end
        wait(blocks._found.copy().values())
        fail(folder, forbidden=True)
        batches_there.append(0)
        with pytest.raises(PpclsError, match="permission"):
            for _ in steps_to(end + steps, end, end + steps):
                batches_there[-1] += 1
        fail(folder)
    assert batches_there[0] < batches_there[1] and (ends_in_a_pass or batches_there[0] == 0)


def test_images_are_fetched_before_the_streams_of_an_engine_need_them(served):
    folder, _, index = served
    far = open_path(index)
    run = [lambda images: images.mean(axis=(2, 3))] * 2
    predictor = predictor_of(*run, preprocessing=PREPROCESSING, num_classes=3)
    results = predictor.run(far, np.arange(IMAGES).reshape(-1, 4), on_error="fail")
    next(results)
    wait(far.source.shelf._blocks._found.copy().values())
    fail(folder, forbidden=True)
    assert sum(len(batch.indices) for batch, _ in results) == IMAGES - 4


def order_of_the_first_version(source, indices, random, parts, block_bytes, window):
    """The formula that states of runs rely on."""
    numbers = indices % len(source)
    numbers = numbers if source.chosen is None else source.chosen[numbers]
    columns = source.index.columns
    shards = np.searchsorted(columns["starts"], numbers, "right") - 1
    blocks = np.stack([shards, columns["offset"][numbers] // block_bytes])
    block = np.unique(blocks, axis=1, return_inverse=True)[1].reshape(-1)
    rank = random.permutation(block.max() + 1 if len(block) else 0)[block]
    mixed = np.lexsort((random.random_sample(len(rank)), rank // window))
    whole = len(mixed) // parts * parts
    return indices[np.concatenate([mixed[:whole].reshape(parts, -1).T.reshape(-1), mixed[whole:]])]


@pytest.mark.parametrize("parts", [1, 2, 7])
def test_the_order_is_that_of_the_first_version(served, monkeypatch, parts):
    monkeypatch.setattr("ppcls.data.shards.WINDOW", 3)
    whole = open_path(served[2]).source
    some = whole.select(np.random.RandomState(5).permutation(IMAGES)[:50])
    for source, indices in (
        (whole, np.arange(IMAGES)),
        (whole, np.random.RandomState(6).randint(0, 3 * IMAGES, 200)),
        (some, np.arange(50)),
        (some, np.arange(0)),
    ):
        expected = order_of_the_first_version(source, indices, np.random.RandomState(0), parts, 20_000, 3)
        found = source.shuffle(indices, np.random.RandomState(0), parts)
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("fault", [{"cut": 3}, {"busy": 3}, {"cut": 2, "busy": 2}])
def test_what_passes_has_no_effect(fault, served):
    folder, _, index = served
    far = open_path(index)
    fail(folder, **fault)
    assert [far.read(number) for number in (0, 60, 119)] == [jpeg(number, 24) for number in (0, 60, 119)]


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ({"busy": 99}, "after 5 tries"),
        ({"forbidden": True}, "permission"),
        ({"whole": True}, "range requests"),
        ({"shifted": True}, "another content"),
    ],
)
def test_what_stays_is_an_error_for_every_policy(fault, words, served):
    folder, url, index = served
    for policy in ("fail", "skip"):
        fail(folder, **fault)
        with pytest.raises(PpclsError, match=words) as error:
            list(batches(open_path(index), policy))
        assert f"{url}/s-0.tar" in str(error.value)


def test_a_shard_that_changed_is_refused_before_and_between_reads(served):
    folder, url, index = served
    path = folder / "s-1.tar"
    data, times = path.read_bytes(), (path.stat().st_atime_ns, path.stat().st_mtime_ns)
    far = open_path(index)
    far.read(41)
    try:
        changed(path, lambda content: content.__setitem__(700, content[700] ^ 1))  # the same size
        for dataset in (open_path(index), far):
            with pytest.raises(PpclsError, match=r"s-1\.tar.*another content.*ppcls data index"):
                dataset.read(79)
    finally:
        path.write_bytes(data)
        os.utime(path, ns=times)
    assert open_path(index).read(79) == jpeg(79, 24)


def test_missing_places_are_named(served, tmp_path):
    _, url, index = served
    with pytest.raises(PpclsError, match=r"none\.tar does not exist"):
        main(["index", f"{url}/none.tar", "--output", str(tmp_path / "x.safetensors")])
    with pytest.raises(PpclsError, match="s3fs|s3://"):
        main(["index", "s3://bucket/a.tar", "--output", str(tmp_path / "x.safetensors")])
    assert not (tmp_path / "x.safetensors").exists()


def test_forks_and_pickles_open_connections_of_their_own(served):
    far = open_path(served[2])
    assert far.read(3) == jpeg(3, 24)
    assert pickle.loads(pickle.dumps(far)).read(90) == jpeg(90, 24)
    child = os.fork()
    if not child:
        os._exit([far.read(number) for number in (3, 60)] != [jpeg(number, 24) for number in (3, 60)])
    assert os.waitpid(child, 0)[1] == 0


def test_memory_is_bounded():
    blocks = Blocks(limit=1000, threads=2)
    for number in range(50):
        assert blocks.get(number, lambda: bytes(300)) == bytes(300)
    deadline = time.monotonic() + 5
    while blocks._bytes > 1000 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert blocks._bytes <= 1000 and len(blocks._found) <= 3
    calls = []
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: blocks.get("one", lambda: calls.append(1) or b"x"), range(50)))
    assert len(calls) == 1
    with pytest.raises(OSError, match="first"):
        blocks.get("two", lambda: (_ for _ in ()).throw(OSError("first")))
    assert blocks.get("two", lambda: b"second") == b"second"


def test_blocks_are_fetched_in_their_order_as_memory_allows():
    blocks, calls = Blocks(limit=1000, threads=1), []

    def fetch(number):
        return lambda: calls.append(number) or bytes(200)

    for number in (0, 1, 2, 3, 2, 4):
        blocks.announce(number, fetch(number), 200)
    for read, begun in ((0, [0, 1, 2]), (0, [0, 1, 2]), (1, [0, 1, 2, 3]), (4, [0, 1, 2, 3, 4])):
        assert blocks.get(read, fetch(read)) == bytes(200)
        wait(blocks._found.copy().values())
        assert calls == begun and sum(blocks._unread.values()) <= 500


def test_the_cache_on_disk_is_bounded_and_optional(tmp_path, served, capfd):
    folder, _, index = served
    cache = DiskCache(tmp_path / "cache", limit=1000)
    for number in range(10):
        assert cache.get(str(number), lambda: bytes(300)) == bytes(300)
    assert sum(path.stat().st_size for path in cache.folder.iterdir()) <= 1000
    assert cache.get("9", lambda: b"fetched again") == bytes(300)
    blocked = tmp_path / "file"
    blocked.write_text("")
    cache = DiskCache(blocked / "cache", limit=1000)  # a folder that cannot be made
    assert [cache.get(str(number), lambda: b"x") for number in range(3)] == [b"x"] * 3
    assert capfd.readouterr().err.count("is not used") == 1
    far = open_shards(index, cache=DiskCache(tmp_path / "kept", limit=1 << 20))
    assert [far.read(number) for number in range(40)] == [jpeg(number, 24) for number in range(40)]
    fail(folder, log=True)
    again = open_shards(index, cache=DiskCache(tmp_path / "kept", limit=1 << 20))
    assert again.read(39) == jpeg(39, 24) and not (folder / "requests.txt").exists()


def test_a_read_is_as_long_as_requested(served):
    _, url, _ = served
    files = RemoteFiles()
    size = files.status(f"{url}/s-0.tar").size
    with pytest.raises(PpclsError, match="Received: 10"):
        files.read(f"{url}/s-0.tar", size - 10, 100, None)
    with pytest.raises(DataError, match="none"):
        main(["index", "none-*.tar"])


def test_shards_in_s3(tmp_path, monkeypatch):
    """moto's server with s3fs: an ETag that must match, credentials that are missing."""
    code = "from moto.server import main; main(['-p', '0', '-H', '127.0.0.1'])"
    with open(tmp_path / "log", "w") as log:
        server = subprocess.Popen([sys.executable, "-u", "-c", code], stdout=log, stderr=log)
    try:
        port = wait_for_port(tmp_path / "log")
        for name, value in (
            ("ACCESS_KEY_ID", "a"),
            ("SECRET_ACCESS_KEY", "b"),
            ("DEFAULT_REGION", "us-east-1"),
        ):
            monkeypatch.setenv(f"AWS_{name}", value)
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
        path = tar_of(
            tmp_path / "a.tar", [("0.jpg", jpeg(0)), ("0.cls", b"1"), ("1.jpg", jpeg(1)), ("1.cls", b"0")]
        )
        system = RemoteFiles().system("s3://bucket")
        system.mkdir("bucket")
        system.put(str(path), "bucket/set/a-000.tar")
        index = tmp_path / "far.safetensors"
        for pattern in ("s3://bucket/set/a-{000..000}.tar", "s3://bucket/set/*.tar"):
            assert main(["index", pattern, "--output", str(index)]) == 0
        dataset = open_path(index)
        assert [dataset.read(number) for number in (0, 1)] == [jpeg(0), jpeg(1)]
        assert dataset.labels.tolist() == [1, 0] and dataset.where(0) == "0.jpg in s3://bucket/set/a-000.tar"
        other = open_path(index)
        other.source.shelf._checked[0] = None  # looked at before it changed
        data = bytearray(path.read_bytes())
        data[700] ^= 1
        path.write_bytes(data)
        system.put(str(path), "bucket/set/a-000.tar")
        for changed_set in (open_path(index), other):
            with pytest.raises(PpclsError, match=r"s3://bucket/set/a-000\.tar has another content"):
                changed_set.read(1)
    finally:
        server.kill()
        server.wait()


def wait_for_port(log):
    """Return the port that the server's log names."""
    for _ in range(200):
        found = re.search(r"http://127\.0\.0\.1:(\d+)", log.read_text())
        if found:
            return int(found[1])
        time.sleep(0.1)
    raise AssertionError(log.read_text())
