"""The server under load and in trouble: limits, deadlines, its end, and clients of all kinds. Its network is
a function that takes its time, in a real process on a real port."""

import asyncio
import json
import signal
import socket
import struct
import threading
import time
from contextlib import closing
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from fuzz_requests import bomb, fuzz, with_length
from helpers import ROOT, Served, predictor_of

from ppcls.preprocessing import Preprocessing
from ppcls.serving.jobs import Job, JobQueue
from ppcls.serving.limits import Limits

pytest.importorskip("uvicorn")
from uvicorn.protocols.http.h11_impl import H11Protocol  # noqa: E402

from ppcls.serving.connection import Connection, Head  # noqa: E402
from ppcls.serving.intake import Place  # noqa: E402
from ppcls.serving.metrics import Metrics  # noqa: E402
from ppcls.serving.model import ServedModel  # noqa: E402
from ppcls.serving.protocol import RequestError  # noqa: E402

SLOW = ROOT / "tests" / "slow_server.py"
PREDICT = b"POST /predict HTTP/1.1\r\n"


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    import cv2

    image = np.random.RandomState(0).randint(0, 256, (40, 50, 3), np.uint8)
    return cv2.imencode(".jpg", image)[1].tobytes()


def start(folder, seconds, *limits, ready="ready"):
    return Served([SLOW, folder, seconds, "batch=1", *limits], ready)


def computed(folder):
    file = folder / "computed"
    return file.read_text().split() if file.exists() else []


def connect(server, data=b""):
    connection = socket.create_connection(("127.0.0.1", server.port), 60)
    connection.sendall(data)
    return connection


def read_answer(connection):
    """Status, head and values of an answer."""
    data = b""
    while b"\r\n\r\n" not in data:
        part = connection.recv(65536)
        assert part, data
        data += part
    head, _, body = data.partition(b"\r\n\r\n")
    length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
    while len(body) < length:
        body += connection.recv(65536)
    return int(head.split()[1]), head.decode().lower(), json.loads(body)


def post(server, body, headers=b""):
    """Send a picture, and return the connection, on which the answer will come."""
    return connect(server, with_length(PREDICT + headers, body))


def fill(server, folder, picture):
    """Give the workers and a queue of two all that they take, and return the connections."""
    connections = [post(server, picture) for _ in range(2)]
    wait_until(lambda: len(computed(folder)) == 1)
    connections += [post(server, picture) for _ in range(2)]
    wait_until(lambda: 'ppcls_queue_depth{model="slow"} 2.0' in server.ask("/metrics")[2].decode())
    return connections


def wait_until(condition):
    until = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.005)


def test_a_full_queue_is_answered_before_the_body_is_read(tmp_path, picture):
    with start(tmp_path, 1.0, "queue=2") as server:
        first = fill(server, tmp_path, picture)
        # no body at all; and by its head alone, as it is not even asked whether the body could be read
        head = PREDICT + b"Content-Encoding: gzip\r\n"
        with closing(connect(server, with_length(head, b"", len(picture)))) as refused:
            status, head, values = read_answer(refused)
            assert len(computed(tmp_path)) < 4  # it did not wait for the others
            assert status == 429 and "\r\nretry-after: " in head and "full" in values["error"]
            refused.sendall(picture)  # the connection can be used again
            refused.sendall(b"GET /v2/health/ready HTTP/1.1\r\nHost: a\r\n\r\n")
            assert read_answer(refused)[0] == 200
        assert [read_answer(connection)[0] for connection in first] == [200] * 4
        assert len(computed(tmp_path)) == 4
        text = server.ask("/metrics")[2].decode()
        assert 'ppcls_rejected_total{cause="queue_full",model="slow"} 1.0' in text


def test_refusals_by_the_head_alone_are_those_of_the_application(tmp_path, picture):
    """One connection after another request, heads and bodies in one piece or in several."""
    with start(tmp_path, 5.0, "queue=2") as server:
        kept = connect(server, b"GET /v2 HTTP/1.1\r\nHost: a\r\n\r\n")
        assert read_answer(kept)[0] == 200
        busy = fill(server, tmp_path, picture)
        answers = []
        for model in (b"/predict?model=slow", b"/predict?model=x&model=slow", b"/v2/models/slow/infer"):
            request = with_length(b"POST %s HTTP/1.1\r\nX-Request-Id: 7\r\n" % model, picture)
            cut = request.index(b"\r\n\r\n") + 2
            for parts in (
                (request,),
                (request[: cut + 9], request[cut + 9 :]),
                (request[:cut], request[cut:]),
            ):
                for part in parts:
                    kept.sendall(part)
                    time.sleep(0.03)
                answers.append(read_answer(kept))
        statuses, heads, values = zip(*answers, strict=True)
        assert set(statuses) == {429} and all(value == values[0] for value in values)
        # only what uvicorn answers has a date: a head in two parts takes the long way
        assert ["\r\ndate: " in head for head in heads] == [False, False, True] * 3
        fields = [
            sorted(line for line in head.split("\r\n") if not line.startswith("date: ")) for head in heads
        ]
        assert all(one == fields[0] for one in fields)
        kept.sendall(with_length(PREDICT, picture) * 3)  # in a pipeline
        received = b""
        while received.count(b"full") < 3:
            received += kept.recv(65536)
        assert received.count(b"HTTP/1.1 429 ") == 3 and b"date: " not in received
        wait_until(lambda: sum(line["request_id"] == "7" for line in server.log) == 9)
        lines = [line for line in server.log if line["request_id"] == "7"]
        assert {(line["status"], line["cause"]) for line in lines} == {(429, "queue_full")}
        assert {line["route"] for line in lines} == {"/predict", "/v2/models/{model}/infer"}
        for connection in [kept, *busy]:
            connection.close()


def test_a_deadline_is_answered_at_once_and_costs_no_work(tmp_path, picture):
    x = {"name": "x", "datatype": "FP32", "shape": [1, 3, 1, 1], "data": [1, 1, 1]}

    def ask(seconds):
        """The header sets it, or the request does."""
        text = json.dumps({"inputs": [x], "parameters": {"timeout": int(1e6 * seconds)}}).encode()
        return [
            post(server, picture, b"X-Request-Timeout-Ms: %d\r\n" % (1000 * seconds)),
            connect(server, with_length(b"POST /v2/models/slow/infer HTTP/1.1\r\n", text)),
        ]

    with start(tmp_path, 1.0, "queue=8", "deadline=0.5") as server:
        busy = [post(server, picture) for _ in range(2)]
        wait_until(lambda: computed(tmp_path))
        began = time.monotonic()
        late, longer = ask(0.1), ask(60)  # no longer than the server's own
        answers = [read_answer(connection) for connection in late]
        assert 0.09 < time.monotonic() - began < 0.45
        answers += [read_answer(connection) for connection in longer]
        assert 0.49 < time.monotonic() - began
        assert [status for status, _, _ in answers] == [504] * 4 and "deadline" in answers[0][2]["error"]
        assert [read_answer(connection)[0] for connection in busy] == [200, 200]
        assert (
            read_answer(post(server, picture, b"X-Request-Timeout-Ms: 700\r\n"))[0] == 200
        )  # it is in work in time
        assert len(computed(tmp_path)) == 3


def test_a_client_that_goes_away_costs_no_work(tmp_path, picture):
    with start(tmp_path, 0.5, "queue=4") as server:
        busy = [post(server, picture) for _ in range(2)]
        wait_until(lambda: computed(tmp_path))
        gone = [post(server, picture) for _ in range(3)]
        time.sleep(0.1)
        for connection in gone:
            connection.close()
        wait_until(lambda: 'ppcls_queue_depth{model="slow"} 0.0' in server.ask("/metrics")[2].decode())
        form = PREDICT + b"Content-Type: multipart/form-data; boundary=e\r\n"
        half = connect(server, with_length(form, b"--e\r\n", len(picture)))
        half.close()  # in the middle of its body, which is no damaged form
        assert [read_answer(connection)[0] for connection in busy] == [200, 200]
        assert read_answer(post(server, picture))[0] == 200
        assert len(computed(tmp_path)) == 3
        wait_until(lambda: sum(line["status"] == 499 for line in server.log) == 4)


def test_sigterm_loses_nothing_that_was_accepted(tmp_path, picture):
    with start(tmp_path, 0.4, "queue=8") as server:
        accepted = [post(server, picture) for _ in range(5)]
        uploading = connect(server, with_length(PREDICT, picture[:100], len(picture)))
        kept = connect(server)
        wait_until(lambda: computed(tmp_path))
        time.sleep(0.2)
        server.process.send_signal(signal.SIGTERM)
        server.wait_for("draining")
        assert server.ask("/v2/health/ready")[0] == 503 and server.ask("/v2/health/live")[0] == 200
        kept.sendall(with_length(PREDICT, picture))
        status, head, values = read_answer(kept)
        assert status == 503 and "draining" in values["error"] and "connection: close" in head
        uploading.sendall(picture[100:])
        assert [read_answer(connection)[0] for connection in [*accepted, uploading]] == [200] * 6
        assert server.end() == 0 and len(computed(tmp_path)) == 6


def test_the_time_to_drain_ends(tmp_path, picture):
    with start(tmp_path, 3.0, "drain=0.3") as server:
        waiting = post(server, picture)
        wait_until(lambda: computed(tmp_path))
        began = time.monotonic()
        assert server.end(signal.SIGTERM) == 1
        assert time.monotonic() - began < 2.9
        assert any("1 requests were not answered" in line for line in server.errors)
        waiting.close()


def test_a_second_signal_ends_it_at_once(tmp_path, picture):
    with start(tmp_path, 5.0) as server:
        waiting = post(server, picture)
        wait_until(lambda: computed(tmp_path))
        server.process.send_signal(signal.SIGTERM)
        server.wait_for("draining")
        began = time.monotonic()
        assert server.end(signal.SIGTERM) == 1  # the request was not answered
        assert time.monotonic() - began < 2  # it does not even wait for connections
        waiting.close()


def test_a_model_that_loads_is_not_ready(tmp_path, picture):
    (tmp_path / "wait").touch()
    with start(tmp_path, 0, ready="listening") as server:
        assert server.ask("/v2/health/live")[0] == 200 and server.ask("/v2/health/ready")[0] == 503
        assert server.ask("/v2/models/slow/ready")[0] == 503 and server.ask("/v2/models/slow")[0] == 503
        assert read_answer(post(server, picture))[0] == 503
        (tmp_path / "wait").unlink()
        server.wait_for("ready")
        assert server.ask("/v2/health/ready")[0] == 200 and read_answer(post(server, picture))[0] == 200
        assert server.end(signal.SIGINT) == 0


def test_sigterm_while_a_model_loads(tmp_path):
    (tmp_path / "wait").touch()
    with start(tmp_path, 0, ready="listening") as server:
        assert server.end(signal.SIGTERM) == 0


def test_a_model_that_cannot_be_opened_ends_the_server(tmp_path):
    (tmp_path / "broken").touch()
    with start(tmp_path, 0, ready="listening") as server:
        assert server.end() != 0
        assert any("the export is broken" in line for line in server.errors)


def test_outputs_that_are_not_finite(tmp_path, picture):
    """JSON has no NaN; a network that gives nothing else is not ready."""
    with start(tmp_path, 0) as server:
        (tmp_path / "nan").touch()
        status, _, values = read_answer(post(server, picture))
        assert status == 400 and "not finite" in values["error"]
        assert server.end(signal.SIGTERM) == 0
    with start(tmp_path, 0, ready="listening") as server:
        assert server.end() != 0
        assert any("not finite" in line for line in server.errors)


def test_an_engine_that_dies(tmp_path, picture):
    with start(tmp_path, 0) as server:
        assert read_answer(post(server, picture))[0] == 200
        (tmp_path / "dead").touch()
        odd = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 3, 5, 5], "data": [1] * 75}]}
        status, _, body = server.ask("/v2/models/slow/infer", json.dumps(odd).encode())
        assert status == 400 and b"dead" in body  # its size may be to blame
        assert server.ask("/v2/health/ready")[0] == 200
        status, _, values = read_answer(post(server, picture))
        assert status == 503 and "the engine is dead" in values["error"]
        assert server.ask("/v2/health/ready")[0] == 503 and server.ask("/v2/models/slow/ready")[0] == 503
        assert server.ask("/v2/health/live")[0] == 200


def test_a_model_that_failed_is_opened_again(tmp_path, picture):
    with start(tmp_path, 0, "reopen=0.2") as server:
        (tmp_path / "dead").touch()
        status, head, _ = read_answer(post(server, picture))
        assert status == 503 and "\r\nretry-after: 1\r\n" in head
        server.wait_for("slow could not be opened: ")
        assert server.ask("/v2/health/ready")[0] == 503 and read_answer(post(server, picture))[0] == 503
        (tmp_path / "dead").unlink()
        server.wait_for("slow is ready again")
        assert server.ask("/v2/health/ready")[0] == 200 and read_answer(post(server, picture))[0] == 200
        time.sleep(0.3)  # it is not opened again without a failure
        failures = [line for line in server.errors if line.startswith("slow failed: ")]
        assert failures and all("dead" in line for line in failures)
        assert server.end(signal.SIGTERM) == 0


def test_bodies_that_are_too_large(tmp_path, picture):
    with start(tmp_path, 0, "body=0.01", "pixels=0.002", "buffer=0.015") as server:
        for declared in (10_486, 10**12, 10**18):
            with closing(connect(server, with_length(PREDICT, b"", declared))) as connection:
                status, _, values = read_answer(connection)
                assert status == 413 and "10485 bytes" in values["error"]
        assert (
            read_answer(post(server, picture.ljust(10_485)))[0] == 200
        )  # 2000 pixels: as many as there may be
        with closing(
            connect(server, PREDICT + b"Host: a\r\nTransfer-Encoding: chunked\r\n\r\n")
        ) as connection:
            for _ in range(3):
                connection.sendall(b"1000\r\n" + bytes(0x1000) + b"\r\n")
            assert read_answer(connection)[0] == 413
        held = connect(
            server, with_length(PREDICT, bytes(8000), 9000)
        )  # of 15,728 bytes of all bodies together
        wait_until(lambda: read_answer(post(server, picture.ljust(7729)))[0] == 429)
        assert read_answer(post(server, picture.ljust(7728)))[0] == 200
        held.close()
        status, _, values = read_answer(post(server, bomb(400)))
        assert (
            status == 413 and "0.002 million pixels" in values["error"] and "0.2 million" in values["error"]
        )
        assert read_answer(post(server, bomb(2**31 - 1)))[0] == 413
        text = b"POST /v2/models/slow/infer HTTP/1.1\r\n"
        assert read_answer(connect(server, with_length(text, b"", 20_000)))[0] == 413


def test_clients_that_are_slow_or_silent(tmp_path, picture):
    with start(tmp_path, 0, "upload=1.5", "idle=1.0", "queue=1") as server:
        slow = connect(server, with_length(PREDICT, picture[:10], len(picture)))
        silent, half_a_head = connect(server), connect(server, b"GET /v2 HTTP/1.1\r\nHo")
        wait_until(lambda: read_answer(post(server, picture))[0] == 429)  # the slow one has the only place
        wait_until(lambda: read_answer(post(server, picture))[0] == 200)  # and loses it
        began = time.monotonic()
        status, head, _ = read_answer(slow)
        assert status == 408 and "connection: close" in head and time.monotonic() - began < 1.5
        wait_until(lambda: {200, 408} <= {line["status"] for line in server.log})
        statuses = [line["status"] for line in server.log]
        assert statuses.index(200) < statuses.index(408)  # it lost the place before its time was over
        for connection in (silent, half_a_head):
            assert connection.recv(100) == b""  # closed
        answered = connect(server, with_length(PREDICT, b"", 10**12))
        assert read_answer(answered)[0] == 413
        with pytest.raises((ConnectionResetError, BrokenPipeError)):  # who sends on is cut off
            for _ in range(100):
                answered.sendall(bytes(1000))
                time.sleep(0.05)


def test_a_client_that_does_not_take_its_answers(tmp_path):
    with start(tmp_path, 0, "idle=1.0", "connections=1") as server, socket.socket() as greedy:
        greedy.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        greedy.connect(("127.0.0.1", server.port))
        greedy.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n" * 1000)
        time.sleep(0.2)
        assert server.ask("/v2/health/live")[0] == 503  # it has the only connection
        wait_until(lambda: server.ask("/v2/health/live")[0] == 200)


def test_a_client_that_does_not_take_its_refusals(tmp_path, picture):
    """It may not let the server keep them in memory without end."""
    with start(tmp_path, 60.0, "queue=2", "idle=0.5", "deadline=90.0") as server, socket.socket() as greedy:
        busy = fill(server, tmp_path, picture)
        greedy.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        greedy.connect(("127.0.0.1", server.port))
        request = with_length(PREDICT + b"X-Request-Id: %s\r\n" % (b"7" * 128), b"")
        until = time.monotonic() + 20
        with pytest.raises((ConnectionResetError, BrokenPipeError)):
            while time.monotonic() < until:
                greedy.sendall(request * 30)
                time.sleep(0.004)  # so that the server reads whole heads
        assert server.ask("/v2/health/live")[0] == 200
        for connection in busy:
            connection.close()


def test_what_is_over_leaves_memory_at_once(tmp_path, picture):
    """Refused pictures, and connections that their clients reset, leave it without the garbage collector."""
    with start(tmp_path, 0) as server:
        for _ in range(9):
            connection = post(server, picture[:20])
            assert read_answer(connection)[0] == 422
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            connection.close()  # a reset
        assert server.ask("/v2/health/live")[0] == 200
        server.process.send_signal(signal.SIGUSR1)
        server.wait_for("in memory: ")
        jobs, connections = map(int, server.errors[-1].split()[-2:])
        assert jobs <= 2 and connections <= 2  # the last one of each worker; and those that are closing


def test_more_connections_than_the_limit(tmp_path):
    with start(tmp_path, 0, "connections=3") as server:
        others = [connect(server) for _ in range(3)]
        with closing(connect(server)) as refused:
            status, head, values = read_answer(refused)
            assert status == 503 and "3 connections" in values["error"] and "connection: close" in head
        others.pop().close()
        wait_until(lambda: server.ask("/v2/health/live")[0] == 200)


def test_what_is_not_http_is_answered_as_an_error(tmp_path):
    with start(tmp_path, 0) as server:
        with closing(connect(server, b"hello\r\n\r\n")) as connection:
            status, _, values = read_answer(connection)
            assert status == 400 and values["error"]
        with closing(connect(server, b"X" * 10_000 + b" / HTTP/1.1\r\nHost: a\r\n\r\n")) as connection:
            assert read_answer(connection)[0] == 405
        wait_until(lambda: server.log)
        assert [line["method"] for line in server.log] == ["X" * 16]  # the log does not grow with it
        assert server.errors[-1] == "ready"  # nor does the error stream


def check_fuzz(server, picture, count, seed):
    """Fuzz a server, and return the growth of its memory in MiB."""
    expected = read_answer(post(server, picture))[2]["predictions"]
    fuzz(server.port, "slow", picture, 100, seed + 1)
    before = server.memory()
    found = fuzz(server.port, "slow", picture, count, seed)
    assert sum(found.values()) == count and not {"500", "502"} & found.keys(), found
    assert {"200", "400", "404", "413", "422", "left"} <= found.keys(), found
    status, _, values = read_answer(post(server, picture))
    assert status == 200 and values["predictions"] == expected
    wait_until(lambda: 'ppcls_queue_depth{model="slow"} 0.0' in server.ask("/metrics")[2].decode())
    assert not any("Traceback" in line for line in server.errors), server.errors[-20:]
    return (server.memory() - before) / 2**20


def test_fuzz(tmp_path, picture):
    with start(tmp_path, 0, "upload=2.0") as server:
        assert check_fuzz(server, picture, 300, seed=0) < 40
        assert server.end(signal.SIGTERM) == 0


@pytest.mark.slow
def test_fuzz_for_long(tmp_path, picture):
    with start(tmp_path, 0, "upload=2.0") as server:
        assert check_fuzz(server, picture, 2000, seed=7) < 40
        assert server.end(signal.SIGTERM) == 0


# Heads


FIELDS = b"Host: a\r\nContent-Length: 12\r\nX-Request-Id:  id 7\t\r\n"


def test_a_head_as_nearly_all_clients_send_it():
    data = b"POST /predict?topk=3 HTTP/1.1\r\n" + FIELDS + b"Accept: */*\r\n\r\n"
    assert Head.of(data + b"the body") == Head("/predict?topk=3", b"id 7", len(data), 12)


@pytest.mark.parametrize(
    "head",
    [
        b"POST /predict HTTP/1.1\r\n" + FIELDS,  # not whole
        b"GET /predict HTTP/1.1\r\n" + FIELDS + b"\r\n",
        b"POST /predict HTTP/1.0\r\n" + FIELDS + b"\r\n",
        b"POST  /predict HTTP/1.1\r\n" + FIELDS + b"\r\n",
        b"POST /pre dict HTTP/1.1\r\n" + FIELDS + b"\r\n",
        b"POST /predict HTTP/1.1\n" + FIELDS + b"\r\n",
        b"POST /predict HTTP/1.1\r\nContent-Length: 12\r\n\r\n",
        b"POST /predict HTTP/1.1\r\nHost: a\r\n\r\n",
        *(
            b"POST /predict HTTP/1.1\r\n" + FIELDS + line + b"\r\n\r\n"
            for line in (
                b"Content-Length: 12",
                b"Transfer-Encoding: chunked",
                b"transfer-encoding : chunked",
                b"Connection: close",
                b"Upgrade: websocket",
                b"Expect: 100-continue",
                b" folded",
                b"A: \xff",
                b"A: a\rb",
                b"A: a\nb",
                b"A",
                b": a",
            )
        ),
        *(
            b"POST /predict HTTP/1.1\r\nHost: a\r\nContent-Length: %s\r\n\r\n" % length
            for length in (b"", b"-1", b"+1", b"1_0", b"0x10", b"1 2", b"4, 4", b"1" * 19, b"\xb2")
        ),
    ],
)
def test_other_heads_are_left_to_the_parser(head):
    assert Head.of(head) is None


def test_what_is_overridden_of_uvicorn_is_there():
    """A later version may have other names: then the limits of connections would hold no more."""
    own = {name for name, value in vars(Connection).items() if callable(value) and not name.startswith("_")}
    assert own - {"refuse"} == own & set(dir(H11Protocol)) and len(own) > 7


# The queue


def job(images=1, seconds=60.0):
    return Job([b""] * images, lambda outputs: outputs, time.monotonic() + seconds)


def filled(*jobs):
    queue = JobQueue(10)
    for one in jobs:
        assert queue.reserve()
        queue.put(one)
    return queue


def test_jobs_are_taken_up_to_the_size_of_a_batch():
    jobs = [job(1), job(2), job(2), job(9), job(1)]
    queue = filled(*jobs)
    assert queue.take(3, 0) == (jobs[:2], False)
    assert queue.take(3, 0) == (jobs[2:3], False)  # the next one does not fit
    assert queue.take(3, 0) == (jobs[3:4], False)  # one that is larger than a batch is taken alone
    assert queue.take(3, 0) == (jobs[4:], False)  # nothing waits, but others are at work
    for _ in range(4):
        queue.done()
    jobs.append(job())
    assert queue.reserve()
    queue.put(jobs[-1])
    assert queue.take(3, 0) == (jobs[5:], True)
    queue.close()
    assert queue.take(3, 0) is None


def test_workers_that_wait_share_what_comes():
    queue, taken = JobQueue(10), []
    workers = [
        threading.Thread(target=lambda: taken.append((queue.take(4, 0) or ([],))[0])) for _ in range(2)
    ]
    for worker in workers:
        worker.start()
    wait_until(lambda: queue._idle == 2)
    with queue._changed:  # both are there before a worker looks
        for _ in range(3):
            queue.reserve()
            queue.put(job())
    wait_until(lambda: taken)
    queue.close()
    for worker in workers:
        worker.join(60)
    assert sorted(map(len, taken)) == [1, 2]


def test_all_workers_end_with_the_queue():
    queue = JobQueue(1)
    workers = [threading.Thread(target=queue.take, args=(4, 0), daemon=True) for _ in range(2)]
    for worker in workers:
        worker.start()
    wait_until(lambda: queue._idle == 2)
    queue.close()
    for worker in workers:
        worker.join(10)
    assert not any(worker.is_alive() for worker in workers)


def test_a_batch_waits_for_further_jobs():
    queue, late = filled(job()), [job(2), job(1)]

    def put_both():
        with queue._changed:
            for one in late:
                queue.reserve()
                queue.put(one)

    threading.Timer(0.05, put_both).start()
    began = time.monotonic()
    taken, _ = queue.take(3, 5.0)
    assert taken[1:] == late[:1] and time.monotonic() - began < 4
    began = time.monotonic()
    assert len(queue.take(2, 0.1)[0]) == 1 and 0.09 < time.monotonic() - began < 2
    queue.reserve()
    queue.put(job())
    queue.close()
    began = time.monotonic()
    assert len(queue.take(2, 5.0)[0]) == 1 and time.monotonic() - began < 4  # no further ones will come


def test_a_place_that_was_lost_is_taken_anew_or_the_queue_is_full():
    model: Any = SimpleNamespace(name="m", queue=JobQueue(1), seconds_to_wait=1)

    async def lose_and_fill():
        place = Place(model)
        place.release()
        assert model.queue.reserve()
        with pytest.raises(RequestError, match="full"):
            place.fill(job())
        model.queue.release()
        place.fill(job())
        place.close()

    asyncio.run(lose_and_fill())
    assert len(model.queue) == 1 and not model.queue.reserve()


def test_a_model_that_is_opened_again_takes_no_place_from_a_sender():
    predictor = predictor_of(
        lambda images: images.mean(axis=(2, 3)),
        preprocessing=Preprocessing(8, 8, "bilinear", False, (0.5,) * 3, (0.5,) * 3),
        num_classes=3,
    )
    model = ServedModel("m", Limits(queue=1, streams=1), Metrics(["m"]))
    model.start(predictor, 0)
    assert model.queue.reserve()
    model.reopen()
    assert not model.queue.reserve()
    model.queue.release()
    assert model.queue.reserve() and not model.queue.reserve()
    model.close()


def test_places_are_reserved_and_given_back():
    queue = JobQueue(2)
    assert queue.reserve() and queue.reserve() and not queue.reserve()
    queue.release()
    first, late = job(), job(seconds=-1)
    assert queue.reserve()
    queue.put(first)
    queue.put(late)
    assert len(queue) == 2 and queue.cancel(first) and len(queue) == 1 and first.future.cancelled()
    assert queue.reserve()
    raced, other = job(), job()
    queue.put(raced, has_place=False)
    raced.future.cancel()  # and a worker looks before it is taken out
    queue.put(other)
    assert queue.take(1, 0)[0] == [other] and late.future.cancelled()
    assert not queue.cancel(other)
