"""Downloads against a server on this machine that misbehaves on request."""

import contextlib
import errno
import hashlib
import http.server
import os
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from ppcls.errors import WeightsError
from ppcls.files import cache_dir
from ppcls.weights import cached_file, download, transfer
from ppcls.weights.download import fetch

ROOT = Path(__file__).parent.parent
BODY = random.Random(1).randbytes(300_000)
SHA256 = hashlib.sha256(BODY).hexdigest()
OTHER = random.Random(2).randbytes(300_000)


@dataclass
class Reply:
    """The server's reply to one request; by default it sends the file, or the requested range."""

    status: int | None = None
    headers: dict = field(default_factory=dict)
    body: bytes = BODY
    etag: str | None = '"1"'
    ranges: bool = True
    heeds_if_range: bool = True
    length: str | None = ""  # "" for the true one, None for none
    cut: int | None = None  # bytes after which the connection ends
    hold: int | None = None  # bytes after which it waits for the gate
    drip: float = 0.0  # seconds between pieces of 1,000 bytes


class Site(http.server.ThreadingHTTPServer):
    """plans: the next replies, by path. asked: the path and the Range of each request."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.plans, self.asked, self.gate = {}, [], threading.Event()

    def plan(self, path, *replies, then=None):
        self.plans[path] = (list(replies), then or Reply())
        return f"http://127.0.0.1:{self.server_port}{path}"

    def ranges(self):
        return [asked for _, asked in self.asked]


class Handler(http.server.BaseHTTPRequestHandler):
    def log_message(self, *args):
        pass

    def do_GET(self):
        self.server.asked.append((self.path, self.headers.get("Range")))
        replies, then = self.server.plans[self.path]
        reply = replies.pop(0) if replies else then
        with contextlib.suppress(OSError):  # a client that was killed
            self.answer(reply)

    def answer(self, reply):
        if reply.status:
            if reply.hold is not None:
                self.server.gate.wait(20)
            self.send_response(reply.status)
            for key, value in reply.headers.items():
                self.send_header(key, value)
            self.end_headers()
            return
        start, headers = 0, dict(reply.headers)
        asked = self.headers.get("Range")
        same = not reply.heeds_if_range or self.headers.get("If-Range") == reply.etag
        if asked and reply.ranges and same:
            start = int(asked.removeprefix("bytes=").removesuffix("-"))
            if start >= len(reply.body):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(reply.body)}")
                self.end_headers()
                return
            headers["Content-Range"] = f"bytes {start}-{len(reply.body) - 1}/{len(reply.body)}"
        rest = reply.body[start:]
        if reply.length is not None:
            headers["Content-Length"] = reply.length or str(len(rest))
        if reply.etag:
            headers["ETag"] = reply.etag
        self.send_response(206 if "Content-Range" in headers else 200)
        for key, value in headers.items():
            self.send_header(key, value)
        self.end_headers()
        rest = rest[: reply.cut]
        if reply.hold is not None:
            self.wfile.write(rest[: reply.hold])
            self.server.gate.wait(20)
            rest = rest[reply.hold :]
        step = 1000 if reply.drip else len(rest) or 1
        for begin in range(0, len(rest), step):
            self.wfile.write(rest[begin : begin + step])
            time.sleep(reply.drip)


@pytest.fixture
def site():
    with Site() as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        yield server
        server.gate.set()
        server.shutdown()


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """Set a separate cache, very short pauses, and no proxy."""
    for name in list(os.environ):
        if name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("PPCLS_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(transfer, "PAUSE", 0.001)
    monkeypatch.setattr(transfer, "MAX_PAUSE", 0.002)
    monkeypatch.setattr(download, "POLL", 0.02)
    return tmp_path / "cache"


def fetch_body(*urls, sha256=SHA256):
    return fetch(urls, sha256=sha256, size=len(BODY))


def names(cache):
    return sorted(path.name for path in cache.iterdir())


# One process.


def test_a_file_is_fetched_once_and_checked_once(site, cache, monkeypatch, capfd):
    url = site.plan("/w.pth")
    path = fetch([url], sha256=SHA256[:8].upper(), size=None, license="CC-BY-NC-4.0, not for commercial use")
    assert path == cache / "w.pth" and path.read_bytes() == BODY
    assert names(cache) == ["w.pth", "w.pth.json", "w.pth.lock"]
    shown = capfd.readouterr().err
    assert all(text in shown for text in (url, str(path), "CC-BY-NC-4.0, not for commercial use"))
    assert "w.pth: 100%" in shown
    monkeypatch.setattr(download, "sha256_of", None)
    assert fetch_body(url) == path
    assert len(site.asked) == 1


def test_it_gets_the_name_that_the_caller_gives(site, cache):
    assert fetch([site.plan("/a/model.safetensors")], sha256=None, size=None, file_name="b0") == cache / "b0"


def test_a_cut_connection_is_resumed(site):
    url = site.plan("/w.pth", Reply(cut=100_000), Reply(cut=80_000))
    assert fetch_body(url).read_bytes() == BODY
    assert site.ranges() == [None, "bytes=100000-", "bytes=180000-"]


def test_a_part_of_an_earlier_run_is_resumed(site, cache, monkeypatch):
    monkeypatch.setattr(transfer, "TRIES", 1)
    url = site.plan("/w.pth", Reply(cut=100_000))
    with pytest.raises(WeightsError, match=r"100,000 of 300,000"):
        fetch_body(url)
    assert "w.pth.part" in names(cache) and "w.pth" not in names(cache)
    assert fetch_body(url).read_bytes() == BODY
    assert site.ranges() == [None, "bytes=100000-"]


@pytest.mark.parametrize(
    "server",
    [Reply(ranges=False), Reply(etag=None), Reply(etag='W/"1"')],
    ids=["ranges", "etag", "strong etag"],
)
def test_a_server_without_ranges_or_validators_starts_over(site, server):
    cut = Reply(ranges=server.ranges, etag=server.etag, cut=100_000)
    assert fetch_body(site.plan("/w.pth", cut, then=server)).read_bytes() == BODY
    assert site.ranges() == [None, "bytes=100000-" if server.etag == '"1"' else None]


def test_last_modified_resumes_where_the_etag_is_weak(site):
    date = "Tue, 01 Sep 2020 00:00:00 GMT"
    headers = {"Last-Modified": date}
    plan = Reply(etag='W/"1"', headers=headers, cut=100_000), Reply(etag=date, headers=headers, cut=0)
    assert fetch_body(site.plan("/w.pth", *plan)).read_bytes() == BODY
    assert site.ranges()[:2] == [None, "bytes=100000-"]


@pytest.mark.parametrize("heeds_if_range", [True, False])
def test_a_file_that_changes_between_tries_starts_over(site, heeds_if_range):
    new = Reply(body=OTHER, etag='"2"', heeds_if_range=heeds_if_range)
    url = site.plan("/w.pth", Reply(cut=100_000), then=new)
    assert fetch([url], sha256=None, size=None).read_bytes() == OTHER


def test_tries_are_counted_only_while_they_bring_nothing(site, monkeypatch):
    monkeypatch.setattr(transfer, "TRIES", 3)
    url = site.plan("/w.pth", *[Reply(cut=40_000)] * 6)
    assert fetch_body(url).read_bytes() == BODY
    url = site.plan("/x.pth", Reply(cut=40_000), then=Reply(cut=1_000))
    with pytest.raises(WeightsError, match="3 attempts.*,000 of 300,000"):
        fetch_body(url)
    assert len([1 for path, _ in site.asked if path == "/x.pth"]) == 3
    url = site.plan("/y.pth", then=Reply(cut=100_000, ranges=False))  # never gets further
    with pytest.raises(WeightsError, match="3 attempts"):
        fetch_body(url)


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        (Reply(body=BODY[:-1]), "299,999.*300,000"),
        (Reply(body=BODY + b"x"), "300,001.*300,000"),
        (Reply(length="300000", body=BODY[:-1]), "5 attempts.*299,999.*300,000"),
        (Reply(length=None, body=BODY[:-1], etag=None), "5 attempts.*299,999.*300,000"),
        (Reply(length=None, body=BODY + b"x"), "more than the 300,000"),
        (Reply(headers={"Content-Type": "text/html; charset=utf-8"}), "web page"),
        (Reply(status=403), "HTTP 403"),
    ],
)
def test_wrong_answers_are_refused(site, cache, reply, words):
    url = site.plan("/w.pth", then=reply)
    with pytest.raises(WeightsError, match=words):
        fetch_body(url)
    assert "w.pth" not in names(cache)


def test_what_nothing_can_check_is_refused(site):
    with pytest.raises(WeightsError, match="length"):
        fetch([site.plan("/w.pth", then=Reply(length=None))], sha256=None, size=None)


def test_a_wrong_hash_is_refused_with_both_and_the_part_removed(site, cache):
    url = site.plan("/w.pth", then=Reply(body=OTHER))
    with pytest.raises(WeightsError) as error:
        fetch_body(url, sha256=SHA256[:8])
    for words in (
        hashlib.sha256(OTHER).hexdigest(),
        SHA256[:8],
        url,
        str(cache / "w.pth"),
        "300,000 bytes",
    ):
        assert words in str(error.value)
    assert names(cache) == ["w.pth.json", "w.pth.lock"]
    assert len(site.asked) == 1


def test_a_damaged_part_costs_one_more_try(site, cache, monkeypatch):
    monkeypatch.setattr(transfer, "TRIES", 1)
    url = site.plan("/w.pth", Reply(cut=100_000))
    with pytest.raises(WeightsError):
        fetch_body(url)
    (cache / "w.pth.part").write_bytes(bytes(100_000))
    monkeypatch.setattr(transfer, "TRIES", 2)
    assert fetch_body(url).read_bytes() == BODY
    assert site.ranges() == [None, "bytes=100000-", None]


def test_a_whole_part_needs_no_byte_more_and_a_longer_one_starts_over(site, cache, monkeypatch):
    monkeypatch.setattr(transfer, "TRIES", 2)
    for name, part in (("whole", BODY), ("longer", BODY + b"xx")):
        url = site.plan(f"/{name}", Reply(cut=100_000), Reply(status=404))
        with pytest.raises(WeightsError):
            fetch_body(url)
        (cache / f"{name}.part").write_bytes(part)
        site.asked.clear()
        assert fetch_body(url).read_bytes() == BODY
        assert site.ranges() == [f"bytes={len(part)}-"] + [None] * (name == "longer")


def test_redirects_are_followed_and_resumed(site):
    target = site.plan("/signed", Reply(cut=100_000))
    url = site.plan("/w.pth", then=Reply(status=302, headers={"Location": target}))
    assert fetch_body(url).read_bytes() == BODY
    assert site.asked[-1] == ("/signed", "bytes=100000-")
    loop = site.plan("/loop", then=Reply(status=302, headers={"Location": "/loop"}))
    site.asked.clear()
    with pytest.raises(WeightsError, match="TooManyRedirects"):
        fetch_body(loop)
    assert len(site.asked) == 31


def test_the_next_name_is_tried_after_404(site, cache):
    gone = site.plan("/ResNeXt101_32x16d_wsl", then=Reply(status=404))
    other = site.plan("/ResNeXt101_32x16_wsl")
    assert fetch_body(gone, other) == cache / "ResNeXt101_32x16d_wsl"
    other = site.plan("/b", then=Reply(status=410))
    with pytest.raises(WeightsError) as error:
        fetch([gone, other], sha256=None, size=None, file_name="c")
    assert f"{gone}: HTTP 404 Not Found\n  {other}: HTTP 410 Gone\n" in str(error.value)
    assert str(cache / "c") in str(error.value)


def test_a_mirror_starts_over(site, monkeypatch):
    """Two servers may call different files by the same ETag."""
    monkeypatch.setattr(transfer, "TRIES", 1)
    url = site.plan("/w.pth", Reply(cut=100_000))
    assert fetch_body(url, site.plan("/mirror")).read_bytes() == BODY
    assert site.asked == [("/w.pth", None), ("/mirror", None)]


@pytest.mark.parametrize("status", [500, 503, 429])
def test_passing_failures_are_retried(site, status):
    url = site.plan("/w.pth", *[Reply(status=status)] * 4)
    assert fetch_body(url).read_bytes() == BODY


def test_pauses_grow_and_heed_the_server_within_bounds(site, monkeypatch):
    pauses = []
    monkeypatch.setattr(transfer.time, "sleep", pauses.append)
    monkeypatch.setattr(transfer, "PAUSE", 1.0)
    monkeypatch.setattr(transfer, "MAX_PAUSE", 30.0)
    plan = [Reply(status=503)] * 3 + [Reply(status=503, headers={"Retry-After": "3600"})]
    fetch_body(site.plan("/w.pth", *plan))
    for pause, middle in zip(pauses, (1, 2, 4), strict=False):
        assert 0.5 * middle <= pause <= 1.5 * middle
    assert pauses[3] == 30


@pytest.mark.parametrize("how", ["silent", "dripping"])
def test_a_stalled_transfer_is_resumed(site, monkeypatch, how):
    monkeypatch.setattr(transfer, "READ_TIMEOUT", 0.3)
    stalled = Reply(hold=100_000) if how == "silent" else Reply(drip=0.02)
    start = time.monotonic()
    assert fetch_body(site.plan("/w.pth", stalled)).read_bytes() == BODY
    assert len(site.asked) == 2 and site.ranges()[1] is not None
    assert time.monotonic() - start < 3


def test_offline_the_error_says_where_to_put_the_file(cache):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/w.pth"
        with pytest.raises(WeightsError) as error:
            fetch_body(url)
    for words in (f"{url}: 5 ", "ConnectionRefusedError", str(cache / "w.pth"), "300,000"):
        assert words in str(error.value)


def test_a_url_that_is_none(cache):
    with pytest.raises(WeightsError, match="No connection adapters"):
        fetch_body("nonsense://x/w.pth")


def test_through_a_proxy(site, monkeypatch):
    """The proxy is asked for the whole URL, of a host that only it could find."""
    monkeypatch.setenv("http_proxy", site.plan("").rstrip("/"))
    site.plan("http://weights.invalid/w.pth")
    assert fetch_body("http://weights.invalid/w.pth").read_bytes() == BODY
    assert site.asked == [("http://weights.invalid/w.pth", None)]


def test_a_file_put_in_by_hand_is_checked_and_used(site, cache, monkeypatch):
    cache.mkdir()
    (cache / "w.pth").write_bytes(BODY)
    assert fetch_body("http://127.0.0.1:9/w.pth") == cache / "w.pth"
    monkeypatch.setattr(download, "sha256_of", None)  # the next time it is known
    assert fetch_body("http://127.0.0.1:9/w.pth") == cache / "w.pth"


def test_a_wrong_file_put_in_by_hand_is_refused_and_left(cache):
    cache.mkdir()
    (cache / "w.pth").write_bytes(OTHER)
    with pytest.raises(WeightsError, match=rf"w.pth .*SHA-256 .* {SHA256}"):
        fetch_body("http://127.0.0.1:9/w.pth")
    assert (cache / "w.pth").read_bytes() == OTHER


def test_a_file_that_changed_after_its_check_is_refused(site, cache):
    path = fetch_body(site.plan("/w.pth"))
    path.write_bytes(BODY[:-1])
    with pytest.raises(WeightsError, match="299,999.*300,000"):
        fetch_body(site.plan("/w.pth"))


def test_a_cache_that_cannot_be_written(site, tmp_path, cache, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PPCLS_HOME", str(tmp_path / "file" / "cache"))
    with pytest.raises(WeightsError, match="w.pth .*PPCLS_HOME"):
        fetch_body(site.plan("/w.pth"))

    def refuse(self, **options):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(download.FileLock, "acquire", refuse)
    monkeypatch.setenv("PPCLS_HOME", str(cache))
    with pytest.raises(WeightsError, match="Permission denied.*PPCLS_HOME"):
        fetch_body(site.plan("/w.pth"))
    (cache / "w.pth").write_bytes(BODY)  # others have filled it
    assert fetch_body(site.plan("/w.pth")) == cache / "w.pth"
    (cache / "w.pth").write_bytes(OTHER)
    with pytest.raises(WeightsError, match="w.pth .*SHA-256"):
        fetch_body(site.plan("/w.pth"))


def test_a_full_disk(site, cache, monkeypatch):
    def fill(response, file, *rest):
        file.write(response.raw.read(100_000))
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(transfer, "_copy", fill)
    with pytest.raises(WeightsError, match="w.pth .*disk is full.*PPCLS_HOME"):
        fetch_body(site.plan("/w.pth"))
    monkeypatch.undo()
    monkeypatch.setenv("PPCLS_HOME", str(cache))
    assert fetch_body(site.plan("/w.pth")).read_bytes() == BODY
    assert site.ranges() == [None, "bytes=100000-"]


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX's folders")
@pytest.mark.parametrize(
    ("environment", "folder"),
    [
        ({"PPCLS_HOME": "~/p", "HOME": "/h", "XDG_CACHE_HOME": "/x"}, "/h/p"),
        ({"XDG_CACHE_HOME": "/x", "HOME": "/h"}, "/x/ppcls"),
        ({"HOME": "/h", "PPCLS_HOME": ""}, "/h/.cache/ppcls"),
    ],
)
def test_the_cache_folder(monkeypatch, environment, folder):
    for name in ("PPCLS_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert cache_dir() == Path(folder)


@pytest.mark.parametrize("sha256", ["1234567", "no hex digits"])
def test_a_hash_must_be_one(sha256):
    with pytest.raises(ValueError, match="sha256"):
        fetch(["http://127.0.0.1:9/w"], sha256=sha256, size=None)


# Several processes.


def test_a_process_that_checks_for_long_shows_that_it_lives(cache, monkeypatch):
    digests = []

    def slow(path, beat):
        for _ in range(12):
            time.sleep(0.1)
            beat()
        digests.append(path)
        return SHA256

    monkeypatch.setattr(download, "sha256_of", slow)
    monkeypatch.setattr(cached_file, "BEAT", 0.05)
    monkeypatch.setattr(download, "PATIENCE", 0.6)
    cache.mkdir()
    (cache / "w.pth").write_bytes(BODY)
    holder = threading.Thread(target=fetch_body, args=["http://127.0.0.1:9/w.pth"])
    holder.start()
    wait_for((cache / "w.pth.json").exists)
    assert fetch_body("http://127.0.0.1:9/w.pth") == cache / "w.pth"
    holder.join()
    assert len(digests) == 1


ASK = f"""
import sys
from ppcls.errors import WeightsError
from ppcls.weights import download
download.PATIENCE = 2.0
try:
    print(download.fetch([sys.argv[1]], sha256="{SHA256}", size={len(BODY)}))
except WeightsError as error:
    print("refused:", error)
"""


class NoLock:
    """A lock as on a file system that does not honour it between machines."""

    def __init__(self, path):
        pass

    def acquire(self, timeout):
        pass

    def release(self):
        pass


def test_without_locks_each_has_a_part_of_its_own(site, cache, monkeypatch):
    """Both append at the same time; the file has no hash to check."""
    monkeypatch.setattr(download, "FileLock", NoLock)
    url = site.plan("/w.pth", Reply(cut=60_000), then=Reply(hold=100_000))
    monkeypatch.setattr(transfer, "TRIES", 1)
    with pytest.raises(WeightsError):
        fetch([url], sha256=None, size=None)
    monkeypatch.setattr(transfer, "TRIES", 5)
    results = []
    both = [
        threading.Thread(target=lambda: results.append(fetch([url], sha256=None, size=None)))
        for _ in range(2)
    ]
    for thread in both:
        thread.start()
    wait_for(lambda: len(site.asked) == 3 and len(list(cache.glob("w.pth.*.part"))) == 2)
    site.gate.set()
    for thread in both:
        thread.join()
    assert results == [cache / "w.pth"] * 2 and results[0].read_bytes() == BODY
    assert sorted(map(str, site.ranges())) == ["None", "None", "bytes=60000-"]  # one had the part
    assert names(cache) == ["w.pth", "w.pth.json"]


def test_a_stranded_part_is_adopted_when_its_owner_is_gone(site, cache, monkeypatch):
    monkeypatch.setattr(transfer, "TRIES", 1)
    url = site.plan("/w.pth", Reply(cut=100_000))
    with pytest.raises(WeightsError):
        fetch_body(url)
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    here, elsewhere = f"{socket.gethostname()}-{ended.pid}-ab", "node-7-5-ab"
    mine = f"{socket.gethostname()}-{os.getpid()}-cd"
    for owner, age, resumed in (
        (here, 0, True),
        (elsewhere, 999, True),
        (elsewhere, 0, False),
        (mine, 999, False),
    ):
        site.asked.clear()
        part = cache / f"w.pth.{owner}.part"
        (cache / "w.pth.part").rename(part)
        (cache / "w.pth.part.json").rename(cache / f"{part.name}.json")
        os.utime(part, (time.time() - age,) * 2)
        assert fetch_body(url).read_bytes() == BODY
        assert site.ranges() == ["bytes=100000-" if resumed else None]
        assert part.exists() != resumed
        for path in cache.iterdir():
            path.unlink()
        site.plan("/w.pth", Reply(cut=100_000))
        with pytest.raises(WeightsError):
            fetch_body(url)


def test_the_size_on_the_disk_is_held_against_the_stated_length(site, cache, monkeypatch):
    """Another process has appended to the part, and no hash is known."""
    copy, done = transfer._copy, []

    def append(response, file, *rest):
        copy(response, file, *rest)
        if not done:
            done.append(file.write(b"more"))

    monkeypatch.setattr(transfer, "_copy", append)
    monkeypatch.setattr(transfer, "TRIES", 1)
    url = site.plan("/w.pth")
    with pytest.raises(WeightsError, match="300,004.*300,000"):
        fetch([url], sha256=None, size=None)
    assert fetch([url], sha256=None, size=None).read_bytes() == BODY


class Asker:
    """A process that fetches; `said` is what it printed so far."""

    def __init__(self, url, log):
        self.log = log
        with log.open("wb") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-c", ASK, url], stdout=file, stderr=subprocess.STDOUT, cwd=ROOT
            )

    def said(self):
        return self.log.read_text(encoding="utf-8")

    def result(self):
        self.process.wait(20)
        return self.said().splitlines()[-1]


def wait_for(condition, seconds=15.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.02)


@pytest.fixture
def askers(tmp_path):
    started = []

    def start(url, count=1):
        new = [Asker(url, tmp_path / f"log{len(started) + index}") for index in range(count)]
        started.extend(new)
        return new

    yield start
    for asker in started:
        asker.process.kill()
        asker.process.wait()


def first_half_sent(site, cache, count=1):
    def sizes():
        return [path.stat().st_size for path in cache.glob("w.pth.*.part")]

    wait_for(lambda: site.asked and sizes() == [100_000] * count)


def test_of_two_processes_one_fetches(site, cache, askers):
    pair = askers(site.plan("/w.pth", then=Reply(hold=100_000)), 2)
    first_half_sent(site, cache)
    wait_for(lambda: all("w.pth" in asker.said() for asker in pair))
    site.gate.set()
    assert [asker.result() for asker in pair] == [str(cache / "w.pth")] * 2
    assert site.ranges() == [None]


def test_a_killed_process_is_replaced_and_its_part_resumed(site, cache, askers):
    url = site.plan("/w.pth", Reply(hold=100_000))
    (first,) = askers(url)
    first_half_sent(site, cache)
    (second,) = askers(url)
    wait_for(lambda: "w.pth:" in second.said())  # it waits, and shows the other's progress
    first.process.send_signal(signal.SIGKILL)
    assert second.result() == str(cache / "w.pth")
    assert (cache / "w.pth").read_bytes() == BODY
    assert site.ranges() == [None, "bytes=100000-"]


def test_those_who_wait_share_the_failure(site, cache, askers):
    url = site.plan("/w.pth", then=Reply(status=404, hold=0))
    (first,) = askers(url)
    wait_for(lambda: site.asked)
    others = askers(url, 2)
    wait_for(lambda: all("w.pth" in asker.said() for asker in others))
    time.sleep(0.5)
    site.gate.set()
    for asker in (first, *others):
        asker.result()
        assert re.search(rf"refused: w.pth .*\n *{re.escape(url)}: HTTP 404", asker.said())
    assert len(site.asked) == 1
    site.plan("/w.pth")  # a later call does not care
    assert fetch_body(url) == cache / "w.pth"


@pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="needs SIGSTOP")
def test_nobody_waits_for_ever_for_a_process_that_hangs(site, cache, askers):
    url = site.plan("/w.pth", then=Reply(hold=100_000))
    (first,) = askers(url)
    first_half_sent(site, cache)
    first.process.send_signal(signal.SIGSTOP)
    (second,) = askers(url)
    assert f"process {first.process.pid} on {socket.gethostname()}" in second.result()


RANKS = f"""
import os, sys
import numpy as np
from ppcls import distributed
from ppcls.weights.download import fetch, fetch_on_all_ranks
distributed.start("cpu")
url, home = sys.argv[1:]
requested = dict(sha256="{SHA256}", size={len(BODY)})
fetch([url + "/shared"], **requested)
assert distributed.sum_over_ranks(np.ones(1)) == 2
os.environ["PPCLS_HOME"] = f"{{home}}{{distributed.rank()}}"  # as on two machines
for name in ("two", "three"):
    fetch_on_all_ranks([f"{{url}}/{{name}}"], **requested)
    assert distributed.sum_over_ranks(np.ones(1)) == 2
    print("this rank has", name, flush=True)
"""


def launch(site, tmp_path):
    script = tmp_path / "ranks.py"
    script.write_text(RANKS, encoding="utf-8")
    arguments = [f"http://127.0.0.1:{site.server_port}", str(tmp_path / "home")]
    options = ["--nproc_per_node", "2", "--log_dir", str(tmp_path / "log")]
    command = [sys.executable, "-m", "paddle.distributed.launch", *options, str(script), *arguments]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    run = subprocess.run(
        command, capture_output=True, text=True, timeout=90, cwd=tmp_path, env=environment, check=False
    )
    logs = [(tmp_path / "log" / f"workerlog.{rank}").read_text(encoding="utf-8") for rank in (0, 1)]
    return run, logs


def test_the_ranks_of_a_run_fetch_once_on_each_machine_and_fail_together(site, cache, tmp_path):
    """The third file is a wrong one on rank 0's machine, while rank 1's is still fetching."""
    site.plan("/shared", then=Reply(drip=0.003))
    site.plan("/two")
    site.plan("/three", then=Reply(hold=100_000))
    (tmp_path / "home0").mkdir()
    (tmp_path / "home0" / "three").write_bytes(OTHER)
    run, logs = launch(site, tmp_path)
    assert all("this rank has two" in log and "this rank has three" not in log for log in logs)
    assert sorted(path for path, _ in site.asked) == ["/shared", "/three", "/two", "/two"]
    assert run.returncode != 0
    for text in (run.stdout + run.stderr, *logs):
        assert re.search(f"home0/three .*SHA-256.* {hashlib.sha256(OTHER).hexdigest()}", text), text


@pytest.mark.slow
def test_a_failed_fetch_ends_the_run_with_the_reason(site, cache, tmp_path):
    site.plan("/shared", then=Reply(status=404))
    run, logs = launch(site, tmp_path)
    assert run.returncode != 0
    assert "shared: HTTP 404" in run.stdout + run.stderr
    assert not any("this rank has" in log for log in logs)
