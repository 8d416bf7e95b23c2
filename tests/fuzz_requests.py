"""Requests that no honest client sends, drawn from a seed."""

import json
import random
import socket
import struct
import zlib
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

INFER, PREDICT = b"POST /v2/models/%s/infer HTTP/1.1\r\n", b"POST /predict HTTP/1.1\r\n"
TIMEOUT = 60  # seconds; a server that takes longer hangs


def bomb(side: int) -> bytes:
    """A PNG of few bytes that states side x side pixels."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(1 << 16))) + chunk(b"IEND", b"")


def draw(source: random.Random, model: bytes, picture: bytes) -> tuple[bytes, str]:
    """Return a request's bytes, and how its client behaves: "wait", "leave" or "slow"."""
    kind = source.randrange(12)
    infer = INFER % model
    if kind == 0:  # bytes of any kind
        return source.randbytes(source.randrange(1, 400)) + b"\r\n\r\n", "wait"
    if kind == 1:  # a cut body
        return with_length(PREDICT, picture[: source.randrange(len(picture))], len(picture)), "leave"
    if kind == 2:  # a length that is not the body's
        lengths = (b"-1", b"1e3", b"0x10", b"99999999999999999999", b"4, 5", b"", b"1" * 5000)
        return PREDICT + b"Host: a\r\nContent-Length: " + source.choice(
            lengths
        ) + b"\r\n\r\n" + picture, "wait"
    if kind == 3:  # a huge body, declared or in chunks
        if source.random() < 0.5:
            return with_length(PREDICT, b"", source.randrange(1 << 30, 1 << 60)), "wait"
        chunk = b"FFFFFFFFFF\r\n" + picture
        return PREDICT + b"Host: a\r\nTransfer-Encoding: chunked\r\n\r\n" + chunk, "leave"
    if kind == 4:  # bytes that are changed
        damaged = bytearray(picture)
        for _ in range(source.randrange(1, 30)):
            damaged[source.randrange(len(damaged))] = source.randrange(256)
        return with_length(PREDICT, bytes(damaged)), "wait"
    if kind == 5:
        return with_length(PREDICT, bomb(source.choice((8_000, 13_000, 60_000, 2**31 - 1)))), "wait"
    if kind == 6:
        return with_length(infer, draw_json(source)), "wait"
    if kind == 7:  # a form
        edge = b'--e\r\nContent-Disposition: form-data; name="a"; filename="/etc/passwd"\r\n\r\n'
        form = bytearray(edge + picture + b"\r\n--e--\r\n")
        for _ in range(source.randrange(10)):
            form[source.randrange(120)] = source.randrange(256)
        boundary = source.choice((b"e", b"", b'"e', b"e" * 3000))
        return with_length(
            PREDICT + b"Content-Type: multipart/form-data; boundary=" + boundary + b"\r\n", bytes(form)
        ), "wait"
    if kind == 8:  # binary tensors
        shape = [source.choice((0, 1, 2, 3, 2**31, -1)) for _ in range(4)]
        size = source.choice((0, 1, 12, 48, 2**40))
        text = json.dumps(
            {
                "inputs": [
                    {
                        "name": "x",
                        "datatype": "FP32",
                        "shape": shape,
                        "parameters": {"binary_data_size": size},
                    }
                ]
            }
        )
        head = b"Inference-Header-Content-Length: %d\r\n" % (
            len(text) + source.choice((-1, 0, 0, 0, 1, 10**9))
        )
        return with_length(infer + head, text.encode() + source.randbytes(min(size, 64))), "wait"
    if kind == 9:  # a client that goes away
        return with_length(PREDICT, picture), "leave"
    if kind == 10:  # one that is slow
        return with_length(PREDICT, picture), "slow"
    paths = (b"/../../etc/passwd", b"//", b"/%00", b"/v2/models/%2e%2e/infer", b"/predict?topk=1e9")
    method, path = source.choice((b"GET", b"POST", b"PUT", b"\xff")), source.choice(paths)
    return b"%s %s HTTP/1.%d\r\nHost: a\r\n\r\n" % (method, path, source.randrange(3)), "wait"


def with_length(head: bytes, body: bytes, length: int | None = None) -> bytes:
    return head + b"Host: a\r\nContent-Length: %d\r\n\r\n" % (len(body) if length is None else length) + body


def draw_json(source: random.Random) -> bytes:
    """Return JSON that resembles a request, with wrong parts."""
    odd = (
        None,
        True,
        -1,
        1e308,
        10**400,
        ["x" * 1000, *[""] * 1000],
        "",
        "x" * 1000,
        [],
        {},
        [[[]]],
        "\ud800",
        float("nan"),
        "/etc/passwd",
    )
    tensor = {"name": "x", "datatype": "FP32", "shape": [1, 3, 2, 2], "data": [0.0] * 12, "parameters": {}}
    request = {
        "id": "a",
        "inputs": [tensor],
        "outputs": [{"name": "logits", "parameters": {"classification": 1}}],
        "parameters": {"timeout": 1_000_000},
    }
    for _ in range(source.randrange(1, 3)):
        outputs = request["outputs"] or [None]
        parts = (
            request,
            tensor,
            tensor,
            request["parameters"],
            outputs[0] if isinstance(outputs, list) else None,
        )
        target = source.choice([part for part in parts if isinstance(part, dict) and part])
        target[source.choice(list(target))] = source.choice(odd)
    text = json.dumps(request).encode()
    return text[: source.randrange(len(text))] if source.random() < 0.2 else text


def send(port: int, request: bytes, behaviour: str) -> str:
    """Send a request, and return the answer's status, or "closed" or "left"."""
    with socket.create_connection(("127.0.0.1", port), TIMEOUT) as connection:
        try:
            if behaviour == "slow":
                for start in range(0, len(request), 1 + len(request) // 4):
                    connection.sendall(request[start : start + 1 + len(request) // 4])
                    connection.settimeout(TIMEOUT)
            else:
                connection.sendall(request)
            if behaviour == "leave":
                return "left"
            answer = b""
            while b"\r\n" not in answer and (part := connection.recv(4096)):
                answer += part
        except (ConnectionResetError, BrokenPipeError):
            return "closed"
    return answer.split()[1].decode() if answer else "closed"


def fuzz(port: int, model: str, picture: bytes, count: int, seed: int) -> Counter:
    """Send requests, eight at a time, and count the answers by their status. Raises TimeoutError for a
    server that hangs."""
    source = random.Random(seed)
    requests = [draw(source, model.encode(), picture) for _ in range(count)]
    with ThreadPoolExecutor(8) as pool:
        return Counter(pool.map(lambda request: send(port, *request), requests))
