"""ROS 2: each frame becomes a ``vision_msgs/Detection2DArray``.

``rclpy`` and ``vision_msgs`` come with ROS and not from PyPI, so they are imported when they are used. The messages were tested with their
definitions, of vision_msgs 4 (ROS 2 Humble and later); no node was ever run.
"""

from __future__ import annotations

import logging
import re
import time
from types import SimpleNamespace
from typing import Any

from edge_effdet.artifacts import ModelSpec
from edge_effdet.errors import BackendUnavailable, first_line
from edge_effdet.runtime.pipeline import FrameResult
from edge_effdet.sending.report import SendReport

logger = logging.getLogger("edge_effdet.sending.ros")

NODE = "edge_effdet"

DEPTH = 10
"""Messages that wait for a subscriber that is slow."""


class RosDetections:
    """Publishes the detections of each frame to a topic. A subscriber that comes later gets what comes later."""

    def __init__(self, topic: str, spec: ModelSpec, source: str, with_objects: bool = False) -> None:
        """Start a node.

        Args:
            topic: as ``/detections``.
            spec: names the classes.
            source: the name of what is looked at; the frame id is made from it.
            with_objects: leave out frames in which nothing was found.

        Raises:
            BackendUnavailable: ROS 2 cannot be imported.
        """
        rclpy, self._messages = import_ros()
        self._rclpy, self._own = rclpy, not rclpy.ok()
        if self._own:
            from rclpy.signals import SignalHandlerOptions

            # Else Ctrl-C would end ROS and not this program.
            rclpy.init(signal_handler_options=SignalHandlerOptions.NO)
        self._node = rclpy.create_node(NODE)
        self._publisher = self._node.create_publisher(self._messages.Detection2DArray, topic, DEPTH)
        self._topic, self._spec, self._with_objects = topic, spec, with_objects
        self._frame_id = frame_id_of(source)
        self._sent = 0

    def write(self, found: FrameResult) -> None:
        """Publish a frame; one that could not be decoded is left out."""
        if found.detections is None or (self._with_objects and not found.detections):
            return
        taken = time.time() - (time.perf_counter() - found.frame.arrived)
        self._publisher.publish(detection_array(self._messages, found, self._spec, taken, self._frame_id))
        self._sent += 1

    def report(self) -> SendReport:
        """How it goes."""
        return SendReport(f"ROS topic {self._topic}", self._sent)

    def close(self) -> None:
        """End the node."""
        self._node.destroy_node()
        if self._own:
            self._rclpy.shutdown()


def import_ros() -> tuple[Any, Any]:
    """``rclpy``, and the types of messages by name.

    Raises:
        BackendUnavailable: one of them cannot be imported.
    """
    try:
        import rclpy
        from vision_msgs.msg import Detection2D, Detection2DArray, ObjectHypothesisWithPose
    except ImportError as error:
        raise BackendUnavailable(
            f"ROS 2 cannot be imported ({first_line(error)}): install ros-humble-vision-msgs, or that of your ROS, run "
            "source /opt/ros/humble/setup.bash, and use the Python that ROS was built for."
        ) from error
    messages = SimpleNamespace(
        Detection2D=Detection2D, Detection2DArray=Detection2DArray, ObjectHypothesisWithPose=ObjectHypothesisWithPose
    )
    return rclpy, messages


def frame_id_of(source: str) -> str:
    """The coordinate frame of a source, as dev_video0 for /dev/video0."""
    return "_".join(re.findall(r"[A-Za-z0-9_]+", source)) or "camera"


def detection_array(messages: Any, found: FrameResult, spec: ModelSpec, seconds: float, frame_id: str) -> Any:
    """The message of a frame.

    Each detection has one hypothesis, whose ``class_id`` is the name of the class, a box by its centre and size in pixels of the frame, and the
    number of a tracked object as its ``id``, else an empty one.

    Args:
        messages: has the types ``Detection2DArray``, ``Detection2D`` and ``ObjectHypothesisWithPose``, which are made without arguments.
        found: the frame, which was decoded.
        spec: names the classes.
        seconds: when the frame was taken, Unix time.
        frame_id: the coordinate frame of the camera.
    """
    detections = found.detections
    assert detections is not None
    array = messages.Detection2DArray()
    _stamp(array.header, seconds, frame_id)
    track_ids = [-1] * len(detections) if detections.track_ids is None else detections.track_ids.tolist()
    rows = zip(
        detections.boxes.tolist(), detections.scores.tolist(), detections.class_ids.tolist(), track_ids, strict=True
    )
    for (x_min, y_min, x_max, y_max), score, class_id, track_id in rows:
        result = messages.ObjectHypothesisWithPose()
        result.hypothesis.class_id = spec.class_names[class_id]
        result.hypothesis.score = score
        detection = messages.Detection2D()
        _stamp(detection.header, seconds, frame_id)
        detection.results.append(result)
        detection.bbox.center.position.x = (x_min + x_max) / 2
        detection.bbox.center.position.y = (y_min + y_max) / 2
        detection.bbox.size_x, detection.bbox.size_y = x_max - x_min, y_max - y_min
        detection.id = str(track_id) if track_id >= 0 else ""
        array.detections.append(detection)
    return array


def _stamp(header: Any, seconds: float, frame_id: str) -> None:
    # Rounded down, so that it is below a second also where the fraction is one almost.
    whole = int(seconds)
    header.stamp.sec, header.stamp.nanosec = whole, int((seconds - whole) * 1_000_000_000)
    header.frame_id = frame_id
