"""ROS 2: the message of a frame, made of the real definitions and written as they travel (CDR). No node is run: ROS is not on PyPI."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from edge_effdet.sending.ros import detection_array, frame_id_of
from tests.receivers import SPEC, make_frame

DEFINITIONS = {
    "Point2D": "float64 x\nfloat64 y",
    "Pose2D": "vision_msgs/Point2D position\nfloat64 theta",
    "BoundingBox2D": "vision_msgs/Pose2D center\nfloat64 size_x\nfloat64 size_y",
    "ObjectHypothesis": "string class_id\nfloat64 score",
    "ObjectHypothesisWithPose": "vision_msgs/ObjectHypothesis hypothesis\ngeometry_msgs/PoseWithCovariance pose",
    "Detection2D": "std_msgs/Header header\nvision_msgs/ObjectHypothesisWithPose[] results\nvision_msgs/BoundingBox2D bbox\nstring id",
    "Detection2DArray": "std_msgs/Header header\nvision_msgs/Detection2D[] detections",
}
"""The fields of vision_msgs 4.1 (github.com/ros-perception/vision_msgs, branch ros2, folder vision_msgs/msg), without their comments."""


@pytest.fixture(scope="module")
def store() -> Any:
    """The messages of ROS 2 Humble, and those above."""
    typesys = pytest.importorskip("rosbags.typesys")
    store = typesys.get_typestore(typesys.Stores.ROS2_HUMBLE)
    found: dict[str, Any] = {}
    for name, text in DEFINITIONS.items():
        found |= typesys.get_types_from_msg(text, f"vision_msgs/msg/{name}")
    store.register(found)
    return store


def empty(store: Any, name: str) -> Any:
    """A message as ROS makes it without arguments: numbers are 0, texts and lists are empty."""
    values = {field: default(store, described) for field, described in store.fielddefs[name][1]}
    return store.types[name](**values)


def default(store: Any, described: tuple[Any, Any]) -> Any:
    kind, detail = int(described[0]), described[1]
    if kind == 1:
        return "" if detail[0] == "string" else 0.0 if detail[0].startswith("float") else 0
    if kind == 2:
        return empty(store, detail)
    if kind == 3:
        return np.zeros(detail[1], np.float64)
    return []


@pytest.fixture(scope="module")
def messages(store) -> Any:
    names = ("Detection2DArray", "Detection2D", "ObjectHypothesisWithPose")
    return SimpleNamespace(**{name: lambda name=name: empty(store, f"vision_msgs/msg/{name}") for name in names})


def sent(store: Any, message: Any) -> Any:
    """A message after its way over the wire."""
    name = "vision_msgs/msg/Detection2DArray"
    return store.deserialize_cdr(store.serialize_cdr(message, name), name)


def test_a_frame_survives_the_wire(store, messages):
    found = make_frame(7, objects=3, track_ids=[5, -1, 2])
    array = sent(store, detection_array(messages, found, SPEC, 1_700_000_000.25, "dev_video0"))
    assert (array.header.stamp.sec, array.header.stamp.nanosec) == (1_700_000_000, 250_000_000)
    assert array.header.frame_id == "dev_video0"
    assert len(array.detections) == 3
    assert [each.id for each in array.detections] == ["5", "", "2"]
    assert found.detections is not None
    for row, detection in enumerate(array.detections):
        assert detection.header == array.header
        (result,) = detection.results
        assert result.hypothesis.class_id == SPEC.class_names[found.detections.class_ids[row]]
        assert result.hypothesis.score == found.detections.scores[row]
        box, center = detection.bbox, detection.bbox.center
        assert center.theta == 0
        corners = [
            center.position.x - box.size_x / 2, center.position.y - box.size_y / 2,
            center.position.x + box.size_x / 2, center.position.y + box.size_y / 2,
        ]  # fmt: skip
        assert corners == found.detections.boxes[row].tolist()


def test_a_frame_without_objects_is_a_message_too(store, messages):
    array = sent(store, detection_array(messages, make_frame(0, objects=0), SPEC, 12.0, "camera"))
    assert list(array.detections) == []
    assert (array.header.stamp.sec, array.header.frame_id) == (12, "camera")


def test_objects_that_nobody_tracks_have_no_id(store, messages):
    array = sent(store, detection_array(messages, make_frame(0, objects=2), SPEC, 12.0, "camera"))
    assert [each.id for each in array.detections] == ["", ""]


def test_frame_ids():
    assert frame_id_of("/dev/video0") == "dev_video0"
    assert frame_id_of("rtsp://10.0.0.2:554/door") == "rtsp_10_0_0_2_554_door"
    assert frame_id_of("möbel?") == "m_bel"
    assert frame_id_of("///") == "camera"
