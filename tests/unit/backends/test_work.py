"""A device counts the work of its engine by the list that the host made of the graph."""

from __future__ import annotations

import json

import onnx
import onnx_ir as ir
import pytest

from edge_effdet.artifacts.reading import from_json, to_json
from edge_effdet.backends.engine_account import EngineAccount
from edge_effdet.backends.work import Convolution, count_engine, count_graph
from edge_effdet.errors import GraphError
from edge_effdet.quant.account import prove_engine
from edge_effdet.quant.proof import list_convolutions
from tests.emulation.small_detector import write_small_detector


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> ir.Model:
    path = tmp_path_factory.mktemp("graph") / "small.onnx"
    write_small_detector(path, bits=7)
    return ir.from_proto(onnx.load(path))


def through_a_file(convolutions):
    return tuple(
        from_json(Convolution, each) for each in json.loads(json.dumps([to_json(each) for each in convolutions]))
    )


def test_the_list_counts_as_the_graph_does(model):
    convolutions = through_a_file(list_convolutions(model))
    # 8 x 8 positions: 32 filters of 3 x 8 x 8, 32 of 3 x 3, 32 of 32.
    assert [each.macs for each in convolutions] == [64 * 32 * 192, 64 * 32 * 9, 64 * 32 * 32]
    for account in (None, EngineAccount("its word", {convolutions[1].name: "fp32"})):
        assert count_engine(convolutions, account).record() == prove_engine(model, account).record()


def test_what_the_backend_keeps_high_is_not_claimed(model):
    convolutions = list_convolutions(model)
    proof = count_engine(
        convolutions,
        EngineAccount("its word", {each.name: "int8" for each in convolutions[1:]} | {convolutions[0].name: "fp16"}),
    )
    assert proof.macs["fp16"] == convolutions[0].macs
    assert proof.below_graph == (convolutions[0].name,)
    assert proof.warning is not None


def test_final_convolutions_alone_are_no_detector():
    with pytest.raises(GraphError, match="holds no convolution"):
        count_graph([Convolution("class_net.predict", 0, "fp32", True)])
