"""The plugin's place in the graph: onnx's reference runs all nodes around it, and NumPy the plugin, written after NVIDIA's source."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from edge_effdet.artifacts import ModelSpec, file_sha256
from edge_effdet.backends.base import CompileOptions
from edge_effdet.backends.tensorrt import rtx as tensorrt_rtx
from edge_effdet.errors import GraphError, UsageError
from edge_effdet.graph.model import load_graph, save_graph
from edge_effdet.graph.rules.efficient_nms import PLUGIN, EfficientNms, attach_efficient_nms
from edge_effdet.runtime.postprocess import detections_from_outputs

SIZE = (64, 96)
SPEC = ModelSpec("tiny", SIZE, ("a", "b", "c"), (1, 2, 3))


class EfficientNMS_TRT(OpRun):  # noqa: N801 - the operator's name
    """The plugin as in ``efficientNMSInference.cu`` with a score threshold below 0.007: it sorts all scores and takes the best 4096."""

    op_domain = ""

    @staticmethod
    def overlap(first, second):
        corner, other = np.maximum(first[:2], second[:2]), np.minimum(first[2:], second[2:])
        inside = np.prod(np.maximum(other - corner, 0))
        return (
            inside / (np.prod(first[2:] - first[:2]) + np.prod(second[2:] - second[:2]) - inside) if inside > 0 else 0
        )

    def _run(
        self,
        boxes,
        scores,
        plugin_version=None,
        score_threshold=None,
        iou_threshold=None,
        max_output_boxes=None,
        background_class=None,
        score_activation=None,
        class_agnostic=None,
        box_coding=None,
    ):
        assert (plugin_version, background_class, score_activation, class_agnostic, box_coding) == ("1", -1, 0, 0, 0)
        batch, _, classes = scores.shape
        count = np.zeros((batch, 1), np.int32)
        kept_boxes = np.zeros((batch, max_output_boxes, 4), np.float32)
        kept_scores = np.zeros((batch, max_output_boxes), np.float32)
        kept_classes = np.zeros((batch, max_output_boxes), np.int32)
        for image in range(batch):
            values = np.where(scores[image] < score_threshold, np.float32(-(1 << 15)), scores[image]).ravel()
            order = np.argsort(-values, kind="stable")[:4096]
            kept = []
            for element in order:
                box, own = boxes[image, element // classes], element % classes
                rivals = [boxes[image, other // classes] for other in kept if other % classes == own]
                if any(self.overlap(box, rival) >= iou_threshold for rival in rivals):
                    continue
                kept.append(element)
                if len(kept) == max_output_boxes:
                    break
            rows = slice(0, len(kept))
            count[image] = len(kept)
            kept_boxes[image, rows] = boxes[image, [element // classes for element in kept]]
            kept_scores[image, rows] = values[kept]
            kept_classes[image, rows] = [element % classes for element in kept]
        return count, kept_boxes, kept_scores, kept_classes


def save_candidates(folder, outputs=("boxes", "scores", "class_ids"), batch="batch", k="k"):
    """A graph whose outputs are copies of its inputs, behind which the plugin is put."""
    names = ("given_boxes", "given_scores", "given_class_ids")
    kinds = (TensorProto.FLOAT, TensorProto.FLOAT, TensorProto.INT32)
    shapes = ([batch, k, 4], [batch, k], [batch, k])
    proto = helper.make_graph(
        [helper.make_node("Identity", [given], [name]) for given, name in zip(names, outputs, strict=True)],
        "candidates",
        [helper.make_tensor_value_info(*value) for value in zip(names, kinds, shapes, strict=True)],
        [helper.make_tensor_value_info(*value) for value in zip(outputs, kinds, shapes, strict=True)],
    )
    model = helper.make_model(proto, opset_imports=[helper.make_opsetid("", 18)])
    return save_graph(
        model, folder / "candidates.onnx", spec=SPEC, stage="optimized", precision="fp32", rewrites={"x": 2}, parents={}
    )


def run_attached(folder, boxes, scores, class_ids, options=None):
    graph = attach_efficient_nms(save_candidates(folder), folder / "attached.onnx", options)
    feeds = {"given_boxes": boxes, "given_scores": scores, "given_class_ids": class_ids}
    return ReferenceEvaluator(str(graph.path), new_ops=[EfficientNMS_TRT]).run(None, feeds)


@st.composite
def candidates(draw):
    """Boxes within and around the canvas, with distinct scores, for one to three images."""
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    batch, count = draw(st.integers(1, 3)), draw(st.integers(1, 30))
    corners = random.uniform(-20, 80, (batch, count, 2))
    boxes = np.concatenate([corners, corners + random.uniform(1, 60, (batch, count, 2))], axis=2).astype(np.float32)
    scores = random.permuted(np.linspace(0.01, 0.99, batch * count)).astype(np.float32).reshape(batch, count)
    return boxes, -np.sort(-scores, axis=1), random.integers(0, 3, (batch, count)).astype(np.int32)


@settings(max_examples=25, deadline=None)
@given(candidates())
def test_detections_are_those_of_the_host(tmp_path_factory, given_candidates):
    """The picture fills the canvas, so clipping to either is the same."""
    attached = run_attached(tmp_path_factory.mktemp("nms"), *given_candidates)
    assert [values.dtype for values in attached] == [np.float32, np.float32, np.int32]
    assert [values.shape[1:] for values in attached] == [(100, 4), (100,), (100,)]
    for image in range(len(attached[0])):
        host = detections_from_outputs(*(values[image] for values in given_candidates), SIZE, SIZE)
        engine = detections_from_outputs(*(values[image] for values in attached), SIZE, SIZE)
        np.testing.assert_array_equal(engine.boxes, host.boxes)
        np.testing.assert_array_equal(engine.scores, host.scores)
        np.testing.assert_array_equal(engine.class_ids, host.class_ids)
        # Rows that are no detections have a score that every threshold drops.
        scores = attached[1][image]
        assert (scores[len(host) :] == -1).all()
        assert not attached[0][image][len(host) :].any()


def test_classes_do_not_suppress_each_other(tmp_path):
    boxes = np.array([[[10, 10, 50, 50], [10, 10, 50, 50], [12, 10, 50, 50]]], np.float32)
    scores = np.array([[0.9, 0.8, 0.7]], np.float32)
    _, kept, class_ids = run_attached(tmp_path, boxes, scores, np.array([[0, 1, 0]], np.int32))
    np.testing.assert_array_equal(kept[0, :3], np.array([0.9, 0.8, -1], np.float32))
    np.testing.assert_array_equal(class_ids[0, :3], [0, 1, 0])


def test_the_plugin_suppresses_at_the_threshold_where_the_host_does_above_it(tmp_path):
    boxes = np.array([[[0, 0, 20, 20], [0, 0, 20, 10]]], np.float32)
    scores, class_ids = np.array([[0.9, 0.8]], np.float32), np.zeros((1, 2), np.int32)
    attached = run_attached(tmp_path, boxes, scores, class_ids)
    assert len(detections_from_outputs(boxes[0], scores[0], class_ids[0], SIZE, SIZE)) == 2
    assert len(detections_from_outputs(*(values[0] for values in attached), SIZE, SIZE)) == 1


def test_thresholds_and_number_are_fixed_in_the_graph(tmp_path):
    boxes = np.array([[[0, 0, 9, 9], [20, 20, 30, 30], [40, 40, 50, 50]]], np.float32)
    scores, class_ids = np.array([[0.9, 0.8, 0.2]], np.float32), np.zeros((1, 3), np.int32)
    options = EfficientNms(score_threshold=0.5, max_detections=4)
    _, kept, _ = run_attached(tmp_path, boxes, scores, class_ids, options)
    np.testing.assert_array_equal(kept, np.array([[0.9, 0.8, -1, -1]], np.float32))
    _, kept, _ = run_attached(tmp_path, boxes, scores, class_ids, EfficientNms(max_detections=1))
    np.testing.assert_array_equal(kept, np.array([[0.9]], np.float32))


def test_the_node_has_what_tensorrts_parser_reads(tmp_path):
    graph = attach_efficient_nms(save_candidates(tmp_path), tmp_path / "attached.onnx")
    model = onnx.load(str(graph.path))
    (node,) = [node for node in model.graph.node if node.op_type == PLUGIN]
    assert node.domain == ""
    assert {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute} == {
        "plugin_version": b"1",
        "score_threshold": 0.0,
        "iou_threshold": 0.5,
        "max_output_boxes": 100,
        "background_class": -1,
        "score_activation": 0,
        "class_agnostic": 0,
        "box_coding": 0,
    }
    assert len(node.output) == 4
    assert [output.name for output in model.graph.output] == ["boxes", "scores", "class_ids"]
    assert graph.rewrites == {"x": 2, "efficient_nms": 1}
    assert graph.parents["graph"] == file_sha256(tmp_path / "candidates.onnx")


def test_it_is_attached_once_and_to_detections_only(tmp_path):
    graph = attach_efficient_nms(save_candidates(tmp_path), tmp_path / "attached.onnx")
    with pytest.raises(GraphError, match="without suppression"):
        attach_efficient_nms(graph, tmp_path / "twice.onnx")
    raw = save_candidates(tmp_path, outputs=("classes_p3", "boxes_p3", "other"))
    with pytest.raises(GraphError, match="without `raw`"):
        attach_efficient_nms(raw, tmp_path / "raw.onnx")
    assert not (tmp_path / "raw.onnx").exists()


@pytest.mark.parametrize(
    "change", [{"score_threshold": 1.0}, {"iou_threshold": 0.0}, {"max_detections": 0}, {"max_detections": 5000}]
)
def test_options_that_make_no_sense(tmp_path, change):
    with pytest.raises(UsageError, match="not between"):
        attach_efficient_nms(
            save_candidates(tmp_path), tmp_path / "attached.onnx", dataclasses.replace(EfficientNms(), **change)
        )


def test_rtx_has_no_such_plugin_and_builds_the_rest(tmp_path):
    pytest.importorskip("tensorrt_rtx")
    graph = attach_efficient_nms(save_candidates(tmp_path, batch=2, k=20), tmp_path / "attached.onnx")
    with pytest.raises(GraphError, match=r"EfficientNMS_TRT 'efficient_nms_\d+_efficientnms_trt'"):
        tensorrt_rtx.compile(graph, CompileOptions(target="86"))
    model = onnx.load(str(graph.path))
    (plugin,) = [node for node in model.graph.node if node.op_type == PLUGIN]
    shapes = ([2, 1], [2, 100, 4], [2, 100], [2, 100])
    kinds = (TensorProto.INT32, TensorProto.FLOAT, TensorProto.FLOAT, TensorProto.INT32)
    model.graph.input.extend(map(helper.make_tensor_value_info, plugin.output, kinds, shapes))
    taken = ([2, 20, 4], [2, 20, SPEC.num_classes])
    model.graph.output.extend(map(helper.make_tensor_value_info, plugin.input, [TensorProto.FLOAT] * 2, taken))
    model.graph.node.remove(plugin)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, str(graph.path))
    assert tensorrt_rtx.compile(graph, CompileOptions(target="86"))


def test_onnx_refuses_it_so_no_other_stage_takes_it_for_a_graph(tmp_path):
    attach_efficient_nms(save_candidates(tmp_path), tmp_path / "attached.onnx")
    with pytest.raises(GraphError, match="EfficientNMS_TRT"):
        load_graph(tmp_path / "attached.onnx")
