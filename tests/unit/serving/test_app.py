"""The routes, asked by HTTP, with a real engine."""

from __future__ import annotations

import base64
import contextlib
import json
import socket
import struct

import numpy as np
import pytest

from edge_effdet.backends.base import load_runner
from edge_effdet.runtime.detector import DetectOptions, Detector
from edge_effdet.runtime.sinks import detections_to_json
from edge_effdet.serving.options import LimitOptions
from edge_effdet.serving.protocol import HEADER_LENGTH
from tests.emulation.small_detector import make_pictures
from tests.serving import RunningServer, png
from tests.statuses import wait


@pytest.fixture(scope="module")
def server(small_engine):
    with RunningServer(small_engine, limits=LimitOptions(max_body_mib=1, body_seconds=0.5)) as running:
        yield running


@pytest.fixture(scope="module")
def files() -> list[bytes]:
    return [png(picture) for picture in make_pictures()]


@pytest.fixture(scope="module")
def expected(small_engine, files):
    with Detector.load(small_engine) as detector:
        return [detector(file) for file in files]


def infer(server: RunningServer, files: list[bytes], binary: bool = True, **request) -> tuple[int, dict]:
    """An infer request with pictures; status, and outputs by name or the error."""
    entry = {"name": "IMAGE", "shape": [len(files), 1], "datatype": "BYTES"}
    blob = b""
    if binary:
        blob = b"".join(struct.pack("<I", len(file)) + file for file in files)
        entry["parameters"] = {"binary_data_size": len(blob)}
    else:
        entry["data"] = [base64.b64encode(file).decode() for file in files]
    parameters = {"binary_data_output": binary, **request.pop("parameters", {})}
    head = json.dumps({"inputs": [entry], "parameters": parameters, **request}).encode()
    headers = {HEADER_LENGTH: str(len(head))} if binary else {}
    status, headers, content = server.ask("POST", "/v2/models/small/infer", head + blob, headers)
    if status != 200:
        return status, json.loads(content)
    start = int(headers[HEADER_LENGTH]) if binary else len(content)
    found = {}
    for output in json.loads(content[:start])["outputs"]:
        dtype = {"FP32": np.float32, "INT32": np.int32}[output["datatype"]]
        if binary:
            size = output["parameters"]["binary_data_size"]
            found[output["name"]] = np.frombuffer(content[start : start + size], dtype).reshape(output["shape"])
            start += size
        else:
            found[output["name"]] = np.array(output["data"], dtype).reshape(output["shape"])
    return status, found


def test_a_picture_has_the_boxes_that_the_detector_finds(server, files, expected, small_engine):
    for file, found in zip(files, expected, strict=True):
        assert len(found)
        answer = server.ask_json("POST", "/detect", file)
        assert answer["image"] == {"height": 64, "width": 64}
        assert answer["detections"] == detections_to_json("", found, small_engine.spec)["detections"]
        parts = answer["milliseconds"]
        assert set(parts) == {"queue", "decode", "infer", "suppress", "total"}
        assert parts["infer"] <= parts["total"]


def test_a_request_may_have_a_threshold_of_its_own(server, files, small_engine):
    with Detector.load(small_engine, options=DetectOptions(score_threshold=0.01, max_detections=2)) as detector:
        want = detections_to_json("", detector(files[0]), small_engine.spec)["detections"]
    assert len(want) == 2
    assert server.ask_json("POST", "/detect?score_threshold=0.01&max_detections=2", files[0])["detections"] == want
    assert not server.ask_json("POST", "/detect?score_threshold=1", files[0])["detections"]
    # The next request has the usual one again.
    assert server.ask_json("POST", "/detect", files[0])["detections"] != want


@pytest.mark.parametrize(
    ("path", "body", "headers", "status", "word"),
    [
        ("/detect", b"", {}, 400, "empty"),
        ("/detect", b"not a picture", {}, 400, "not an image"),
        ("/detect", b"--x\r\n", {"Content-Type": "multipart/form-data; boundary=x"}, 415, "--data-binary"),
        ("/detect", b"x", {"Content-Encoding": "gzip"}, 415, "compressed"),
        ("/detect", b"x" * (2**20 + 1), {}, 413, "1 MiB"),
        ("/detect?threshold=0.5", b"x", {}, 400, "score_threshold"),
        ("/detect?score_threshold=2", b"x", {}, 400, "between 0 and 1"),
        ("/detect?score_threshold=nan", b"x", {}, 400, "between 0 and 1"),
        ("/detect?score_threshold=", b"x", {}, 400, "no such number"),
        ("/detect?max_detections=1e3", b"x", {}, 400, "no such number"),
        ("/v2/models/small/infer", b"{}", {}, 400, "inputs"),
        ("/v2/models/other/infer", b"{}", {}, 404, "small-tensor"),
        ("/nowhere", b"", {}, 404, "/docs"),
        ("/engine", b"", {}, 405, "POST"),
    ],
)
def test_what_cannot_be_answered_is_told_in_a_sentence(server, path, body, headers, status, word):
    got, error = server.error("POST", path, body, headers)
    assert got == status
    assert word in error


def test_a_truncated_picture_is_no_fault_of_the_service(server, files):
    assert server.error("POST", "/detect", files[0][:200])[0] == 400
    assert server.ask_json("POST", "/detect", files[0])


def test_a_body_that_does_not_come_is_given_up(server):
    connection = server.connect()
    connection.putrequest("POST", "/detect")
    connection.putheader("Content-Length", "1000")
    connection.endheaders(b"some")
    answer = connection.getresponse()
    assert answer.status == 408
    assert "0.5 s" in json.loads(answer.read())["error"]
    connection.close()


def test_a_body_of_unknown_length_is_counted(server, files):
    assert server.ask("POST", "/detect", iter([files[0][:50], files[0][50:]]))[0] == 200
    parts = (b"x" * 65536 for _ in range(40))
    # The service may close before all is sent, and then the client sees no answer.
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        assert server.ask("POST", "/detect", parts)[0] == 413
    assert server.ask_json("POST", "/detect", files[0])


@pytest.mark.parametrize("binary", [True, False])
def test_the_protocol_gives_what_the_detector_finds(server, files, expected, binary):
    status, found = infer(server, files, binary)
    assert status == 200
    assert found["COUNTS"].ravel().tolist() == [len(each) for each in expected]
    for row, each in enumerate(expected):
        np.testing.assert_array_equal(found["BOXES"][row, : len(each)], each.boxes)
        np.testing.assert_array_equal(found["SCORES"][row, : len(each)], each.scores)
        np.testing.assert_array_equal(found["CLASS_IDS"][row, : len(each)], each.class_ids)


def test_parameters_of_a_request(server, files):
    status, found = infer(server, files[:1], parameters={"score_threshold": 0.01, "max_detections": 3, "priority": 1})
    assert (status, found["COUNTS"].tolist()) == (200, [[3]])
    assert infer(server, files[:1], parameters={"threshhold": 0.1})[0] == 400
    assert infer(server, files[:1], parameters={"score_threshold": [1]})[0] == 400


def test_a_bad_picture_of_several_is_named(server, files):
    status, answer = infer(server, [files[0], b"no picture", files[1]])
    assert status == 400
    assert "Picture 1" in answer["error"]
    assert infer(server, [files[0]] * 60)[0] == 413


def test_the_engine_with_its_own_tensors(server, small_engine):
    pixels = np.stack([picture.transpose(2, 0, 1) for picture in make_pictures()])
    name = "/v2/models/small-tensor"
    described = server.ask_json("GET", name)
    assert described["inputs"] == [{"name": "images", "datatype": "UINT8", "shape": [-1, 3, 64, 64]}]
    entry = {"name": "images", "shape": list(pixels.shape), "datatype": "UINT8", "data": pixels.ravel().tolist()}
    answer = server.ask_json("POST", f"{name}/infer", json.dumps({"inputs": [entry]}))
    with load_runner(small_engine) as runner:
        for row in range(len(pixels)):
            want = runner.run({"images": pixels[row : row + 1]})
            for output in answer["outputs"]:
                got = np.array(output["data"]).reshape(output["shape"])[row]
                np.testing.assert_array_equal(got.astype(want[output["name"]].dtype), want[output["name"]][0])
    wrong = {**entry, "shape": [3, 64, 64, 3]}
    assert server.error("POST", f"{name}/infer", json.dumps({"inputs": [wrong]}))[0] == 400


def test_health_metadata_and_the_engine(server, small_engine):
    for path in ("/v2/health/live", "/v2/health/ready", "/v2/models/small/ready", "/v2/models/small/versions/1/ready"):
        assert server.ask("GET", path)[0] == 200
    assert server.error("GET", "/v2/models/no/ready")[0] == 404
    assert "binary_tensor_data" in server.ask_json("GET", "/v2")["extensions"]
    described = server.ask_json("GET", "/v2/models/small/versions/1")
    assert [each["name"] for each in described["outputs"]] == ["BOXES", "SCORES", "CLASS_IDS", "COUNTS"]
    engine = server.ask_json("GET", "/engine")
    assert engine["sha256"] == small_engine.sha256
    assert engine["precision"] == "int8"
    assert "golden" not in engine


def test_metrics_tell_what_happened(server, files):
    def value(name: str) -> float:
        text = server.ask("GET", "/metrics")[2].decode()
        (line,) = (each for each in text.splitlines() if each.startswith(name))
        return float(line.split()[-1])

    ok = 'edge_effdet_requests_total{route="/detect",status="200"}'
    server.ask_json("POST", "/detect", files[0])
    before = value(ok), value('edge_effdet_stage_seconds_count{stage="infer"}')
    server.ask_json("POST", "/detect", files[0])
    assert value(ok) == before[0] + 1
    assert value('edge_effdet_stage_seconds_count{stage="infer"}') == before[1] + 1
    server.ask("POST", "/detect", b"no picture")
    assert value("edge_effdet_unreadable_total") >= 1
    assert value("edge_effdet_waiting_pictures") == 0
    assert value("edge_effdet_engine_info") == 1
    for path in ("/a", "/b"):
        server.ask("GET", path)
    # Not one for each path that somebody thinks of.
    assert value('edge_effdet_requests_total{route="other",status="404"}') >= 2


def test_a_mistake_of_ours_is_told_in_json_and_a_client_that_leaves_is_no_error(server, files, monkeypatch):
    monkeypatch.setattr(server.service.batcher, "detect", lambda *_: 1 / 0)
    status, error = server.error("POST", "/detect", files[0])
    assert (status, "log has more" in error) == (500, True)
    monkeypatch.undo()
    connection = server.connect()
    connection.putrequest("POST", "/detect")
    connection.putheader("Content-Length", "1000")
    connection.endheaders(b"some")
    connection.close()
    gone = 'edge_effdet_requests_total{route="/detect",status="499"}'
    wait(lambda: gone in server.ask("GET", "/metrics")[2].decode())


def test_an_early_answer_reaches_a_client_that_still_sends(server):
    host, port = server.address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=60) as client:
        client.sendall(b"POST /detect HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 8000000\r\n\r\n")
        for _ in range(80):
            client.sendall(bytes(100_000))
        assert client.recv(65536).startswith(b"HTTP/1.1 413")


def test_a_client_cannot_say_that_it_is_another(small_engine, files):
    with RunningServer(small_engine, limits=LimitOptions(request_rate=1)) as server:
        statuses = [
            server.ask("POST", "/detect", files[0], {"X-Forwarded-For": f"192.0.2.{each}"})[0] for each in range(3)
        ]
    assert statuses == [200, 429, 429]


def test_a_page_of_another_site_and_another_name_get_nothing(server, files):
    assert server.error("POST", "/detect", files[0], {"Origin": "http://evil.example"})[0] == 403
    assert server.error("POST", "/detect", files[0], {"Host": "evil.example"})[0] == 421
