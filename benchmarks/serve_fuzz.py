"""Requests that are wrong in many ways: does the service answer each, and does it live on?

python -m benchmarks.serve_fuzz --engine engines/bccd.int8.onnx --requests 10000

Heads, bodies, tensors and pictures are made from right ones by random changes of a known seed. An answer with a status of 500 or more has to be ours:
JSON with a sentence, and 503 alone. A request that cannot be read as HTTP may be answered by closing the connection.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import random
import struct
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.machine import save_result
from benchmarks.parser import make_parser
from benchmarks.serve_client import ServerProcess, read_answer, request_bytes, start_server
from edge_effdet.artifacts import load_engine
from edge_effdet.cli import Result, run_verb, table
from edge_effdet.runtime.golden import draw_pictures, encode_picture

PATIENCE = 20.0
"""Seconds after which a request that is neither answered nor closed counts as hung."""

CLIENTS = 16

PATHS = (
    "/detect", "/detect?score_threshold=0.5", "/detect?max_detections=3", "/v2", "/v2/health/live", "/v2/health/ready", "/v2/models/fuzz",
    "/v2/models/fuzz/ready", "/v2/models/fuzz/infer", "/v2/models/fuzz-tensor/infer", "/engine", "/metrics", "/session", "/", "/docs",
    "/openapi.json", "/page/page.js", "/live.json", "/live.mjpeg",
)  # fmt: skip

_ODD = (
    None, True, -1, 0, 1, 2**31, 2**63, 10**40, 1e308, float("nan"), float("inf"), "", "a", "\x00", "\ud800", "é" * 50, [], [[]], {}, {"a": {}}, [None],
    "BYTES", "UINT8", "FP32", [1, 1], [-1], [0], [2**62, 4],
)  # fmt: skip


def change_bytes(rng: random.Random, content: bytes) -> bytes:
    """Flip, cut, repeat or put in bytes."""
    changed = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 8, 64))):
        if not changed:
            return bytes(rng.randbytes(rng.randrange(64)))
        place = rng.randrange(len(changed))
        kind = rng.randrange(5)
        if kind == 0:
            changed[place] ^= 1 << rng.randrange(8)
        elif kind == 1:
            changed[place] = rng.choice(b'\x00\xff\r\n\t "{}[]:;,%/?=')
        elif kind == 2:
            del changed[place : place + rng.randrange(1, 200)]
        elif kind == 3:
            changed[place:place] = rng.randbytes(rng.randrange(1, 40))
        else:
            del changed[place:]
    return bytes(changed)


def change_json(rng: random.Random, value: Any) -> Any:
    """Put something odd somewhere into an object."""
    if isinstance(value, dict) and value and rng.random() < 0.8:
        name = rng.choice(list(value))
        changed = dict(value)
        if rng.random() < 0.2:
            del changed[name]
        else:
            changed[name] = change_json(rng, value[name])
        return changed
    if isinstance(value, list) and value and rng.random() < 0.7:
        changed = list(value)
        place = rng.randrange(len(changed))
        changed[place] = change_json(rng, changed[place])
        return changed
    return rng.choice(_ODD)


def infer_request(
    rng: random.Random, pictures: Sequence[bytes], size: tuple[int, int]
) -> tuple[str, bytes, dict[str, str]]:
    """Path, body and headers of an infer request that is wrong in its JSON, its tensors or its lengths."""
    tensor, binary = rng.random() < 0.4, rng.random() < 0.6
    entry: dict[str, Any]
    if tensor:
        blob = rng.randbytes(3 * size[0] * size[1])
        entry = {"name": "images", "shape": [1, 3, *size], "datatype": "UINT8"}
        if not binary:
            entry["data"] = list(blob[:50])
    else:
        picture = rng.choice(pictures)
        blob = struct.pack("<I", len(picture)) + picture
        entry = {"name": "IMAGE", "shape": [1, 1], "datatype": "BYTES"}
        if not binary:
            entry["data"] = [base64.b64encode(picture).decode()]
    if binary:
        entry["parameters"] = {"binary_data_size": len(blob)}
    request = {
        "id": "1",
        "inputs": [entry],
        "outputs": [{"name": "BOXES", "parameters": {"binary_data": True}}],
        "parameters": {},
    }
    if rng.random() < 0.7:
        request = change_json(rng, request)
    head = json.dumps(request).encode()
    if rng.random() < 0.2:
        head = change_bytes(rng, head)
    body = head + (blob if binary else b"")
    if rng.random() < 0.3:
        body = change_bytes(rng, body)
    length = rng.choice((len(head), len(head), len(head), len(body), 0, -1, 10**12))
    return (
        f"/v2/models/fuzz{'-tensor' if tensor else ''}/infer",
        body,
        {"Inference-Header-Content-Length": str(length)} if binary else {},
    )


def make_request(rng: random.Random, pictures: Sequence[bytes], size: tuple[int, int]) -> tuple[str, bytes]:
    """A kind, and the bytes that go over the wire."""
    kind = rng.choice(("picture", "picture", "tensors", "tensors", "head", "path", "method", "body", "chunks"))
    if kind == "picture":
        return kind, request_bytes(rng.choice(PATHS[:3]), change_bytes(rng, rng.choice(pictures)))
    if kind == "tensors":
        path, body, headers = infer_request(rng, pictures, size)
        more = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        return (
            kind,
            f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n{more}Content-Length: {len(body)}\r\n\r\n".encode() + body,
        )
    whole = request_bytes(rng.choice(PATHS), rng.choice(pictures))
    head, _, body = whole.partition(b"\r\n\r\n")
    if kind == "head":
        return kind, change_bytes(rng, head) + b"\r\n\r\n" + body
    if kind == "path":
        path = change_bytes(rng, rng.choice(PATHS).encode()) + rng.choice(
            (b"", b"%", b"%00", b"?%ff=1", b"/../../etc/passwd", b"#")
        )
        return kind, b"GET " + path + b" HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
    if kind == "method":
        method = rng.choice(
            (b"GET", b"PUT", b"DELETE", b"OPTIONS", b"TRACE", b"PATCH", b"HEAD", b"CONNECT", b"PRI", b"post", b"\xff")
        )
        path = rng.choice(PATHS).encode()
        upgrade = rng.choice(
            (
                b"",
                b"Upgrade: websocket\r\nConnection: Upgrade\r\n",
                b"Upgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings\r\n",
                b"Expect: 100-continue\r\n",
            )
        )
        return kind, method + b" " + path + b" HTTP/1.1\r\nHost: 127.0.0.1\r\n" + upgrade + b"\r\n"
    if kind == "chunks":
        parts = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (body[:100], body[100:]))
        return kind, b"POST /detect HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n\r\n" + change_bytes(
            rng, parts + b"0\r\n\r\n"
        )
    return kind, rng.randbytes(rng.randrange(1, 2000))


async def send_one(server: ServerProcess, content: bytes) -> tuple[str, bytes]:
    """What became of one request: a status, ``closed`` or ``hung``; and the body of the answer.

    The client closes its side when no answer has come for a second, so that the service need not wait for the rest of a request.
    """
    reader, writer = await asyncio.open_connection(server.host, server.port)
    try:
        writer.write(content)
        answering = asyncio.ensure_future(read_answer(reader))
        if not (await asyncio.wait([answering], timeout=1.0))[0]:
            writer.write_eof()
        status, body, _ = await asyncio.wait_for(answering, PATIENCE)
        return str(status), body
    except asyncio.TimeoutError:
        return "hung", b""
    except (ConnectionError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, ValueError, IndexError):
        return "closed", b""
    finally:
        writer.close()


async def send_all(
    server: ServerProcess, requests: Sequence[tuple[str, bytes]], shown: Callable[[int], None]
) -> tuple[Counter[str], list[str]]:
    """How often each outcome came, by kind and outcome, and what was not as it should be."""
    outcomes: Counter[str] = Counter()
    wrong: list[str] = []
    left = list(enumerate(requests))

    async def client() -> None:
        while left:
            number, (kind, content) = left.pop()
            outcome, body = await send_one(server, content)
            outcomes[outcome] += 1
            # A stream has no end, and its answer no length.
            if outcome == "hung" or (outcome.startswith("5") and not (outcome == "503" and b'"error"' in body)):
                wrong.append(f"{number} ({kind}): {outcome} {body[:200]!r}")
            shown(len(left))

    await asyncio.gather(*(client() for _ in range(CLIENTS)))
    return outcomes, wrong


def _run(arguments: argparse.Namespace) -> Result:
    engine = load_engine(arguments.engine)
    rng = random.Random(arguments.seed)
    pictures = [encode_picture(each) for each in draw_pictures(engine.spec.image_size, 4)]
    requests = [make_request(rng, pictures, engine.spec.image_size) for _ in range(arguments.requests)]
    begun = time.perf_counter()
    with start_server(engine.path, ["--name", "fuzz", "--body-seconds", "2"]) as server:
        memory = server.resident_mb()
        outcomes, wrong = asyncio.run(send_all(server, requests, lambda left: None))
        alive = server.process.poll() is None
        after, _ = asyncio.run(send_one(server, request_bytes("/detect", pictures[0])))
        grown = server.resident_mb() - memory
    result = {
        "engine_sha256": engine.sha256,
        "seed": arguments.seed,
        "requests": len(requests),
        "outcomes": dict(sorted(outcomes.items())),
        "wrong": wrong[:50],
        "wrong_count": len(wrong),
        "alive": alive,
        "right_request_after": after,
        "seconds": time.perf_counter() - begun,
        "growth_mb": grown,
    }
    path = save_result("serve-fuzz", result, arguments.name)
    rows = [("outcome", "requests"), *((name, str(count)) for name, count in sorted(outcomes.items()))]
    rows += [
        ("hung, or 5xx that are not ours", str(len(wrong))),
        ("alive after all", "yes" if alive else "no"),
        ("a right request after all", after),
    ]
    return Result("\n".join([table(rows), *wrong[:10], "", str(path)]), result)


def main(argv: Sequence[str] | None = None) -> int:
    parser = make_parser(
        "serve_fuzz", "Send the HTTP service requests that are wrong.", "--engine engines/bccd.int8.onnx"
    )
    parser.add_argument("--engine", type=Path, required=True, metavar="F", help="an engine that build_engine wrote")
    parser.add_argument("--requests", type=int, default=10_000, metavar="N", help="how many (default: 10000)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the changes (default: 0)")
    parser.add_argument("--name", default="", metavar="NAME", help="the name of the result file, after serve-fuzz-")
    return run_verb(parser, _run, argv)


if __name__ == "__main__":
    sys.exit(main())
