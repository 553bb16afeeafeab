"""Requests of the Open Inference Protocol: JSON, binary tensors, and all that is none."""

from __future__ import annotations

import base64
import json
import struct

import numpy as np
import pytest

from edge_effdet.artifacts import Detections
from edge_effdet.errors import UsageError
from edge_effdet.serving.protocol import HEADER_LENGTH, pack_detections, parse_infer_request, write_infer_response


def body(**request) -> bytes:
    return json.dumps(request).encode()


def tensor(**changed) -> dict:
    return {"name": "x", "shape": [2, 2], "datatype": "UINT8", "data": [[1, 2], [3, 255]], **changed}


def test_numbers_in_json_flat_or_nested():
    for data in ([[1, 2], [3, 255]], [1, 2, 3, 255]):
        found = parse_infer_request(body(id="a", inputs=[tensor(data=data)]), None)
        assert found.id == "a"
        assert found.inputs["x"].dtype == np.uint8
        np.testing.assert_array_equal(found.inputs["x"], [[1, 2], [3, 255]])


def test_bytes_in_json_are_base64():
    data = [base64.b64encode(each).decode() for each in (b"one", b"\xff\x00")]
    found = parse_infer_request(body(inputs=[tensor(shape=[2, 1], datatype="BYTES", data=data)]), None)
    assert found.inputs["x"].tolist() == [[b"one"], [b"\xff\x00"]]


def test_binary_tensors_follow_the_json_in_the_order_of_the_inputs():
    numbers = np.array([[1.5, -2.0]], np.float32)
    text = b"".join(struct.pack("<I", len(each)) + each for each in (b"abc", b""))
    head = body(
        inputs=[
            {"name": "a", "shape": [1, 2], "datatype": "FP32", "parameters": {"binary_data_size": 8}},
            {"name": "b", "shape": [2], "datatype": "BYTES", "parameters": {"binary_data_size": len(text)}},
            tensor(),
        ],
        outputs=[{"name": "y", "parameters": {"binary_data": True}}, {"name": "z"}],
    )
    found = parse_infer_request(head + numbers.tobytes() + text, str(len(head)))
    np.testing.assert_array_equal(found.inputs["a"], numbers)
    assert found.inputs["b"].tolist() == [b"abc", b""]
    assert found.outputs == {"y": True, "z": False}


@pytest.mark.parametrize(
    ("given", "length"),
    [
        (b"", None),
        (b"{", None),
        (b"[]", None),
        (b"[" * 100_000, None),
        (b"\xff\xfe", None),
        (body(), None),
        (body(inputs={}), None),
        (body(inputs=[1]), None),
        (body(inputs=[]), None),
        (body(inputs=[tensor()]), "9999"),
        (body(inputs=[tensor()]), "-1"),
        (body(inputs=[tensor()]), "x"),
        (body(inputs=[tensor(), tensor()]), None),
        (body(inputs=[tensor(name=None)]), None),
        (body(inputs=[tensor(shape=[3])]), None),
        (body(inputs=[tensor(shape=[-2, -2])]), None),
        (body(inputs=[tensor(shape=[2**40, 2**40])]), None),
        (body(inputs=[tensor(shape=[1] * 9, data=[1])]), None),
        (body(inputs=[tensor(shape=None)]), None),
        (body(inputs=[tensor(datatype="COMPLEX64")]), None),
        (body(inputs=[tensor(datatype=["UINT8"])]), None),
        (body(inputs=[tensor(data=[[1, 2], [3]])]), None),
        (body(inputs=[tensor(data=[1, 2, 3, 256])]), None),
        (body(inputs=[tensor(data=[1, 2, 3, -1])]), None),
        (body(inputs=[tensor(data=[1, 2, 3, 0.5])]), None),
        (body(inputs=[tensor(data=[1, 2, 3, "4"])]), None),
        (body(inputs=[tensor(data=[1, 2, 3, 10**30])]), None),
        (body(inputs=[tensor(data={"a": 1})]), None),
        (body(inputs=[tensor(datatype="BYTES", shape=[1], data=["@@"])]), None),
        (body(inputs=[tensor(datatype="BYTES", shape=[1], data=[7])]), None),
        (body(inputs=[tensor(parameters=[])]) + b"", "1"),
        (body(inputs=[tensor(parameters=7)]), None),
        (body(inputs=[tensor(parameters={"binary_data_size": 4})]), None),
        (
            body(inputs=[{"name": "x", "shape": [1], "datatype": "BYTES", "parameters": {"binary_data_size": 10**9}}]),
            None,
        ),
        (
            body(inputs=[{"name": "x", "shape": [1], "datatype": "BYTES", "parameters": {"binary_data_size": True}}]),
            None,
        ),
        (body(inputs=[tensor()], outputs=[{"name": 7}]), None),
        (body(inputs=[tensor()], parameters=[1]), None),
    ],
)
def test_what_is_no_request_is_told_in_a_sentence(given, length):
    with pytest.raises(UsageError) as told:
        parse_infer_request(given, length)
    assert str(told.value).endswith((".", "numbers."))


def test_what_would_keep_others_waiting_is_refused():
    with pytest.raises(UsageError, match="more values"):
        parse_infer_request(body(inputs=[tensor()])[:-1] + b"," + b"[]," * 4_000_000, None)
    blob = bytes(4 * 5000)
    head = body(
        inputs=[{"name": "x", "shape": [5000], "datatype": "BYTES", "parameters": {"binary_data_size": len(blob)}}]
    )
    with pytest.raises(UsageError, match="more than 4096 elements"):
        parse_infer_request(head + blob, str(len(head)))


@pytest.mark.parametrize("blob", [b"\x01", struct.pack("<I", 5) + b"abc", struct.pack("<I", 2**31) + b"abc"])
def test_elements_of_bytes_that_end_too_early(blob):
    head = body(
        inputs=[{"name": "x", "shape": [1], "datatype": "BYTES", "parameters": {"binary_data_size": len(blob)}}]
    )
    with pytest.raises(UsageError):
        parse_infer_request(head + blob, str(len(head)))


def test_an_answer_gives_what_was_asked_for_and_how():
    outputs = {"y": np.array([[1.0, 2.0]], np.float32), "z": np.array([3], np.int32)}
    asked = parse_infer_request(
        body(id="7", inputs=[tensor()], outputs=[{"name": "z"}, {"name": "y", "parameters": {"binary_data": True}}]),
        None,
    )
    content, headers = write_infer_response(asked, "m", outputs)
    length = int(headers[HEADER_LENGTH])
    head = json.loads(content[:length])
    assert [each["name"] for each in head["outputs"]] == ["z", "y"]
    assert head["outputs"][0]["data"] == [3]
    assert (head["id"], head["model_name"]) == ("7", "m")
    np.testing.assert_array_equal(np.frombuffer(content[length:], np.float32), [1, 2])
    plain, headers = write_infer_response(parse_infer_request(body(inputs=[tensor()]), None), "m", outputs)
    assert HEADER_LENGTH not in headers
    assert [each["datatype"] for each in json.loads(plain)["outputs"]] == ["FP32", "INT32"]
    with pytest.raises(UsageError, match="no output 'q'"):
        write_infer_response(parse_infer_request(body(inputs=[tensor()], outputs=[{"name": "q"}]), None), "m", outputs)


def test_detections_of_several_pictures_are_padded_to_the_most():
    boxes = np.array([[0, 0, 4, 4], [1, 1, 3, 3]], np.float32)
    two = Detections(boxes, np.array([0.9, 0.8], np.float32), np.array([1, 0], np.int32))
    none = Detections(boxes[:0], two.scores[:0], two.class_ids[:0])
    packed = pack_detections([none, two])
    assert packed["BOXES"].shape == (2, 2, 4)
    assert packed["COUNTS"].tolist() == [[0], [2]]
    assert packed["CLASS_IDS"].tolist() == [[-1, -1], [1, 0]]
    assert pack_detections([none])["BOXES"].shape == (1, 0, 4)
