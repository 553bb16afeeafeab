"""The report's counts, checked by hand on small graphs."""

from __future__ import annotations

import json

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper
from PIL import Image

from edge_effdet.errors import GraphError
from edge_effdet.graph.counting import MACS_BEFORE_FUSION
from edge_effdet.graph.report import Volume, count_nodes, make_report
from edge_effdet.graph.report_picture import draw_report
from edge_effdet.graph.report_text import COLUMNS, to_text
from edge_effdet.graph.rule import RuleReport
from edge_effdet.quant.precision import convert_to_half


def conv(name, inputs, output, **attributes):
    weight, bias = f"network.{name}.weight", f"network.{name}.bias"
    return "Conv", (inputs, weight, bias), (output,), attributes


def weights(name, *shape):
    return {
        f"network.{name}.weight": np.ones(shape, np.float32),
        f"network.{name}.bias": np.zeros(shape[0], np.float32),
    }


def by_name(report):
    return {layer.name: layer for layer in report.layers}


def fp32(numbers):
    return Volume(numbers, 0, 4 * numbers)


@pytest.fixture
def stem(bench):
    """A stem with SiLU on ``batch`` images of 3x8x8; None makes the batch dynamic."""

    def make(batch: int | None = 1):
        return bench.make_model(
            [
                conv("backbone.conv_stem", "images", "c", strides=[2, 2], pads=[1, 1, 1, 1]),
                ("Sigmoid", ("c",), ("s",), {}),
                ("Mul", ("c", "s"), ("y",), {}),
            ],
            weights("backbone.conv_stem", 8, 3, 3, 3),
            {"images": [batch or "batch", 3, 8, 8]},
            {"y": [batch or "batch", 8, 4, 4]},
        )

    return make


@pytest.fixture
def block(bench):
    """Depthwise convolution, SiLU, squeeze-and-excitation, pointwise convolution, residual sum: 16x6x6."""
    module = "backbone.blocks.3.1"
    return bench.make_model(
        [
            conv(f"{module}.conv_dw", "x", "d", pads=[1, 1, 1, 1], group=16),
            ("Sigmoid", ("d",), ("ds",), {}),
            # torch writes x * sigmoid(x), other tools the reverse.
            ("Mul", ("ds", "d"), ("a",), {}),
            ("ReduceMean", ("a", "axes"), ("m",), {"keepdims": 1}),
            conv(f"{module}.se.conv_reduce", "m", "r"),
            ("Sigmoid", ("r",), ("rs",), {}),
            ("Mul", ("r", "rs"), ("ra",), {}),
            conv(f"{module}.se.conv_expand", "ra", "e"),
            ("Sigmoid", ("e",), ("g",), {}),
            ("Mul", ("a", "g"), ("scaled",), {}),
            conv(f"{module}.conv_pwl", "scaled", "p"),
            ("Add", ("p", "x"), ("y",), {}),
        ],
        {
            **weights(f"{module}.conv_dw", 16, 1, 3, 3),
            **weights(f"{module}.se.conv_reduce", 4, 16, 1, 1),
            **weights(f"{module}.se.conv_expand", 16, 4, 1, 1),
            **weights(f"{module}.conv_pwl", 16, 16, 1, 1),
            "axes": np.array([2, 3]),
        },
        {"x": [1, 16, 6, 6]},
        {"y": [1, 16, 6, 6]},
    )


@pytest.fixture
def detector(bench):
    """One convolution of each part, a BiFPN node between two levels, decoding with anchors; images of 16x16."""
    return bench.make_model(
        [
            ("Mul", ("images", "pixel_scale"), ("scaled",), {}),
            conv("backbone.conv_stem", "scaled", "stem", strides=[2, 2], kernel_shape=[1, 1]),
            conv("backbone.blocks.0.0.conv_pw", "stem", "b0"),
            ("Add", ("b0", "stem"), ("p3",), {}),
            conv("fpn.resample.3.conv", "p3", "p4_wide"),
            ("MaxPool", ("p4_wide",), ("p4",), {"kernel_shape": [2, 2], "strides": [2, 2]}),
            ("Resize", ("p4", "", "factors"), ("up",), {"mode": "nearest"}),
            ("Mul", ("up", "edge"), ("weighted",), {}),
            ("Add", ("weighted", "p3"), ("sum",), {}),
            conv("fpn.cell.0.fnode.0.conv_pw", "sum", "f0"),
            ("Relu", ("f0",), ("f0a",), {}),
            conv("fpn.cell.1.fnode.0.conv_pw", "f0a", "f1"),
            ("Clip", ("f1", "low", "high"), ("f1a",), {}),
            conv("class_net.predict.conv_pw", "f1a", "classes"),
            conv("box_net.predict.conv_pw", "f1a", "boxes"),
            ("Reshape", ("classes", "flat"), ("logits",), {}),
            ("TopK", ("logits", "k"), ("scores", "indices"), {}),
            ("Gather", ("anchors", "indices"), ("picked",), {"axis": 0}),
            ("Shape", ("picked",), ("shape",), {}),
            ("Reshape", ("boxes", "flat4"), ("rows",), {}),
            ("Slice", ("rows", "zero", "k", "one"), ("first",), {}),
            ("Add", ("picked", "first"), ("found",), {}),
        ],
        {
            **weights("backbone.conv_stem", 4, 3, 1, 1),
            **weights("backbone.blocks.0.0.conv_pw", 4, 4, 1, 1),
            **weights("fpn.resample.3.conv", 4, 4, 1, 1),
            **weights("fpn.cell.0.fnode.0.conv_pw", 4, 4, 1, 1),
            **weights("fpn.cell.1.fnode.0.conv_pw", 4, 4, 1, 1),
            **weights("class_net.predict.conv_pw", 1, 4, 1, 1),
            **weights("box_net.predict.conv_pw", 4, 4, 1, 1),
            "pixel_scale": np.ones((1, 3, 1, 1), np.float32),
            "edge": np.float32(0.5),
            "factors": np.array([1, 1, 2, 2], np.float32),
            "low": np.float32(0),
            "high": np.float32(6),
            "anchors": np.zeros((64, 4), np.float32),
            "flat": np.array([1, 64]),
            "flat4": np.array([1, 64, 4]),
            "k": np.array([5]),
            "zero": np.array([0]),
            "one": np.array([1]),
        },
        {"images": [1, 3, 16, 16]},
        {"scores": [1, 5], "found": [1, 5, 4]},
    )


def report_of(model, **more):
    return make_report(ir.from_proto(model), **more)


def test_convolution_by_hand(stem):
    layer = report_of(stem()).layers[0]
    assert (layer.name, layer.kind, layer.group, layer.part) == ("backbone.conv_stem", "Conv", "convolution", "stem")
    assert layer.shape == (1, 8, 4, 4)
    # 4x4 positions, 8 filters of 3x3x3.
    assert layer.cost.macs == 16 * 8 * 27
    assert layer.cost.parameters == layer.cost.weights == fp32(8 * 27 + 8)
    assert layer.cost.inputs == fp32(3 * 64)
    assert layer.cost.outputs == fp32(8 * 16)
    traffic = layer.cost.traffic
    assert traffic.graph_bytes == traffic.in_bytes("fp32") == 4 * (224 + 192 + 128)
    assert (traffic.in_bytes("fp16"), traffic.in_bytes("int8")) == (2 * 544, 544)
    assert layer.cost.intensity == 16 * 8 * 27 / (4 * 544)


def test_dense_convolution_has_the_macs_that_it_does(stem):
    """The share of INT8 counts the MACs of the pair that the convolution replaces; the report counts those of the graph itself."""
    model = ir.from_proto(stem())
    model.graph[0].metadata_props[MACS_BEFORE_FUSION] = "7"
    assert make_report(model).total.cost.macs == 16 * 8 * 27


def test_silu_is_one_layer_that_reads_once(stem):
    report = report_of(stem())
    assert [layer.kind for layer in report.layers] == ["Conv", "SiLU"]
    layer = report.layers[1]
    assert (layer.group, layer.part, layer.after) == ("activation", "stem", "backbone.conv_stem")
    assert layer.cost.inputs == layer.cost.outputs == fp32(128)
    assert layer.cost.macs == layer.cost.parameters.numbers == 0
    assert report.nodes.by_kind == {"Conv": 1, "Sigmoid": 1, "Mul": 1}
    assert (report.nodes.total, report.nodes.silu_as_one) == (3, 2)


def test_gate_of_squeeze_and_excitation_is_no_silu(block):
    report = report_of(block)
    assert report.nodes.by_kind["Sigmoid"] == 3
    assert (report.nodes.silu, report.nodes.total, report.nodes.silu_as_one) == (2, 12, 10)
    kinds = [layer.kind for layer in report.layers]
    assert kinds == ["Conv", "SiLU", "ReduceMean", "Conv", "SiLU", "Conv", "Sigmoid", "Mul", "Conv", "Add"]
    gate = report.layers[7].cost
    assert gate.inputs == fp32(16 * 36 + 16)
    assert report.layers[2].cost.inputs == fp32(16 * 36)
    assert report.layers[2].cost.parameters == Volume(), "axes are a setting"


@pytest.mark.parametrize("output", ["s", "t"])
def test_sigmoid_that_others_take_too_is_no_silu(bench, output):
    model = bench.make_model(
        [("Sigmoid", ("x",), ("s",), {}), ("Mul", ("x", "s"), ("y",), {}), ("Relu", ("s",), ("t",), {})],
        {},
        {"x": [1, 2, 3, 3]},
        {"y": [1, 2, 3, 3], output: [1, 2, 3, 3]},
    )
    assert count_nodes(ir.from_proto(model)).silu == 0
    assert [layer.kind for layer in report_of(model).layers] == ["Sigmoid", "Mul", "Relu"]


def test_depthwise_convolution_and_sums(block):
    report = report_of(block)
    layers = by_name(report)
    module = "backbone.blocks.3.1"
    assert layers[f"{module}.conv_dw"].cost.macs == 36 * 16 * 9
    assert layers[f"{module}.conv_pwl"].cost.macs == 36 * 16 * 16
    assert layers[f"{module}.se.conv_reduce"].cost.macs == 64
    assert report.total.cost.macs == 36 * 16 * 9 + 36 * 256 + 64 + 64
    assert report.total.cost.parameters.numbers == 160 + (64 + 4) + (64 + 16) + (256 + 16)
    assert [part.label for part in report.parts] == ["stage 3"]
    assert report.parts[0].cost == report.total.cost
    assert {group.label: group.layers for group in report.groups} == {
        "convolution": 4, "activation": 3, "element-wise": 2, "pooling": 1,
    }  # fmt: skip
    for name in ("macs", "inputs", "outputs", "weights"):
        assert sum(
            (getattr(group.cost, name) for group in report.groups), type(getattr(report.total.cost, name))()
        ) == (getattr(report.total.cost, name))


@pytest.mark.parametrize("batch", [4, None])
def test_counts_are_of_one_image(stem, batch):
    assert report_of(stem(batch)).to_dict() == report_of(stem()).to_dict()


def test_a_batch_that_is_folded_into_another_axis(bench):
    def traffic(batch):
        model = bench.make_model(
            [
                ("Transpose", ("x",), ("t",), {"perm": [0, 2, 1]}),
                ("Reshape", ("t", "rows"), ("r",), {}),
                ("Relu", ("r",), ("y",), {}),
            ],
            {"rows": np.array([-1, 4])},
            {"x": [batch, 4, 10]},
            {"y": [10 * batch, 4]},
        )
        return report_of(model).total.cost.traffic

    assert traffic(3) == traffic(1) == fp32(4 * 40)


def test_parameters_that_layers_share_are_stored_once_and_read_by_each(bench):
    model = bench.make_model(
        [conv("class_net.conv_rep.0.conv_pw", level, f"{level}_out") for level in ("p3", "p4")],
        weights("class_net.conv_rep.0.conv_pw", 8, 8, 1, 1),
        {"p3": [1, 8, 4, 4], "p4": [1, 8, 2, 2]},
        {"p3_out": [1, 8, 4, 4], "p4_out": [1, 8, 2, 2]},
    )
    report = report_of(model)
    assert [layer.name for layer in report.layers] == [f"class_net.conv_rep.0.conv_pw@{level}" for level in (0, 1)]
    assert report.total.cost.parameters == fp32(72)
    assert report.total.cost.weights == fp32(144)


def test_parts_of_a_detector(detector):
    report = report_of(detector)
    assert [part.label for part in report.parts] == [
        "pixels", "stem", "stage 0", "bifpn inputs", "bifpn cell 0", "bifpn cell 1", "class head", "box head", "decoding",
    ]  # fmt: skip
    found = [(layer.kind, layer.part) for layer in report.layers if layer.kind != "Conv"]
    assert found == [
        ("Mul", "pixels"),
        ("Add", "stage 0"),
        ("MaxPool", "bifpn cell 0"),
        ("Resize", "bifpn cell 0"),
        ("Mul", "bifpn cell 0"),
        ("Add", "bifpn cell 0"),
        ("Relu", "bifpn cell 1"),
        ("Clip", "bifpn cell 1"),
        ("TopK", "decoding"),
        ("Gather", "decoding"),
        ("Slice", "decoding"),
        ("Add", "decoding"),
    ]
    assert by_name(report)["MaxPool_5"].after == "fpn.resample.3.conv"


def test_names_of_the_optimizer_are_kept(detector):
    model = ir.from_proto(detector)
    stem = next(node for node in model.graph if node.op_type == "Conv")
    stem.name = "backbone.blocks.6.0.conv_pw@2"
    assert [layer.part for layer in make_report(model).layers if layer.name == stem.name] == ["stage 6"]


def test_settings_are_no_parameters_and_views_no_layers(detector):
    report = report_of(detector)
    layers = {layer.kind: layer.cost for layer in report.layers}
    assert layers["Clip"].parameters == layers["Resize"].parameters == layers["TopK"].parameters == Volume()
    assert not {"Reshape", "Shape"} & set(layers)
    assert report.nodes.by_kind["Reshape"] == 2
    assert by_name(report)["Mul_7"].cost.parameters == fp32(1)
    assert by_name(report)["Mul_0"].cost.parameters == fp32(3)


def test_of_a_table_only_what_is_picked_is_read(detector):
    layers = {layer.kind: layer.cost for layer in report_of(detector).layers}
    assert layers["Gather"].parameters == fp32(64 * 4)
    assert layers["Gather"].weights == layers["Gather"].outputs == fp32(5 * 4)
    assert layers["Gather"].inputs == Volume(0, 5 * 8, 5 * 8), "indices keep their type"
    assert layers["TopK"].outputs == Volume(5, 40, 60)
    assert layers["Slice"].inputs == layers["Slice"].outputs


def test_pixels_keep_their_type():
    graph = helper.make_graph(
        [helper.make_node("Cast", ["images"], ["y"], "cast", to=TensorProto.FLOAT)],
        "tiny",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, ["batch", 3, 4, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 3, 4, 4])],
    )
    traffic = report_of(helper.make_model(graph)).total.cost.traffic
    assert traffic.to_dict() == {"graph": 48 * 5, "fp32": 48 * 5, "fp16": 48 * 3, "int8": 48 * 2}


def test_fp16_graph_has_the_bytes_that_its_fp32_graph_foretells(detector):
    half = ir.from_proto(detector)
    convert_to_half(half)
    before, after = by_name(report_of(detector)), by_name(make_report(half))
    for name in ("backbone.blocks.0.0.conv_pw", "fpn.cell.1.fnode.0.conv_pw"):
        assert after[name].cost.traffic.graph_bytes == before[name].cost.traffic.in_bytes("fp16")
        assert after[name].cost.macs == before[name].cost.macs


def test_arithmetic_on_shapes_and_constants_is_no_layer(bench):
    model = bench.make_model(
        [
            ("Shape", ("x",), ("shape",), {"start": 0, "end": 1}),
            ("Concat", ("shape", "rest"), ("target",), {"axis": 0}),
            ("Relu", ("edges",), ("positive",), {}),
            ("Mul", ("x", "positive"), ("scaled",), {}),
            ("Reshape", ("scaled", "target"), ("y",), {}),
        ],
        {"rest": np.array([12]), "edges": np.float32([0.5])},
        {"x": ["batch", 3, 4]},
        {"y": ["batch", 12]},
    )
    report = report_of(model)
    assert [layer.kind for layer in report.layers] == ["Mul"]
    assert report.layers[0].cost.parameters == fp32(1)
    assert report.nodes.total == 5


def test_unknown_shape_is_refused(stem):
    model = stem()
    del model.graph.value_info[:]
    with pytest.raises(GraphError, match=r"shape of c is unknown.*shape inference"):
        report_of(model)


def test_dynamic_height_is_refused(stem):
    model = stem()
    for value in (*model.graph.input, *model.graph.value_info, *model.graph.output):
        value.type.tensor_type.shape.dim[2].dim_param = "height"
    with pytest.raises(GraphError, match=r"height.*only the batch may be dynamic"):
        report_of(model)


def test_the_graph_stays_as_it_is(detector):
    model = ir.from_proto(detector)
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    make_report(model)
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before


RULES = (
    RuleReport("fold_batchnorm", 30, ()),
    RuleReport(
        "absorb_fusion_weights",
        3,
        (*((f"fpn.cell.{cell}.fnode.{node}.after_combine.conv.conv_pw", "one factor is 0") for cell in range(3) for node in range(4)),
         ("Conv_9", "the graph's output takes its output too, and must not see the factor")),
    ),
)  # fmt: skip


def test_json_round_trip(detector):
    model = ir.from_proto(detector)
    report = make_report(model, count_nodes(model), RULES)
    data = report.to_dict()
    assert json.loads(json.dumps(data)) == data
    assert data["nodes"]["total"] == data["nodes_before"]["total"] == 22
    assert data["rules"][1]["refused"][-1] == ["Conv_9", RULES[1].refused[-1][1]]
    assert len(data["layers"]) == data["total"]["layers"] == sum(part["layers"] for part in data["parts"])
    assert data["total"]["macs"] == sum(layer["macs"] for layer in data["layers"])
    assert data["total"]["traffic_bytes"]["fp16"] == sum(layer["traffic_bytes"]["fp16"] for layer in data["layers"])


def test_text_names_every_refusal_within_its_columns(detector, block):
    before = count_nodes(ir.from_proto(block))
    text = to_text(report_of(detector, nodes_before=before, rules=RULES), heaviest=3)
    lines = text.splitlines()
    assert max(map(len, lines)) <= COLUMNS
    assert ["nodes", "traced", "optimized"] == lines[0].split()
    assert ["all,", "SiLU", "as", "one", "10", "22"] in [line.split() for line in lines]
    words = " ".join(text.split())
    for name, reason in RULES[1].refused:
        assert name in words
        assert reason in words
    assert "refused absorb_fusion_weights at Conv_9: the graph's output" in words
    for label in ("pixels", "bifpn cell 0", "decoding", "element-wise"):
        assert any(line.startswith(f"{label}  ") for line in lines)
    assert sum("Conv  " in line for line in lines[lines.index("") :]) >= 3


def test_text_of_one_graph_alone(stem):
    text = to_text(report_of(stem()))
    assert text.splitlines()[0].split() == ["nodes", "number"]
    assert "rule" not in text


def test_picture(detector, tmp_path):
    path = tmp_path / "report.png"
    draw_report(report_of(detector), path, title="a $graph$")
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        assert picture.width > 1200
        assert len(picture.convert("RGB").getcolors(1 << 20)) > 20
    assert list(tmp_path.iterdir()) == [path]


def test_picture_of_a_graph_without_convolutions(bench, tmp_path):
    model = bench.make_model([("Relu", ("x",), ("y",), {})], {}, {"x": [1, 2, 3, 3]}, {"y": [1, 2, 3, 3]})
    report = report_of(model)
    draw_report(report, tmp_path / "report.png")
    assert report.total.cost.intensity == 0
    assert "most MACs" not in to_text(report)
    assert "most traffic" in to_text(report)
