"""Small graphs with and without Q/DQ."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

KINDS = {
    "float32": TensorProto.FLOAT,
    "uint8": TensorProto.UINT8,
    "int32": TensorProto.INT32,
    "int64": TensorProto.INT64,
}


class Workbench:
    def make_model(self, nodes, arrays, inputs, outputs):
        """A graph of nodes, each (name, op, inputs, outputs, attributes); inputs and outputs map a name to (dtype, shape)."""
        graph = helper.make_graph(
            [
                helper.make_node(op, taken, given, name=name, **attributes)
                for name, op, taken, given, attributes in nodes
            ],
            "tiny",
            [helper.make_tensor_value_info(name, KINDS[kind], shape) for name, (kind, shape) in inputs.items()],
            [helper.make_tensor_value_info(name, KINDS[kind], shape) for name, (kind, shape) in outputs.items()],
            [numpy_helper.from_array(np.asarray(array), name) for name, array in arrays.items()],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
        onnx.checker.check_model(model, full_check=True)
        return onnx.shape_inference.infer_shapes(model)

    def quantized_input(self, name, source, scale=0.02):
        """Nodes and arrays of Q/DQ around the tensor ``source``; the result is ``<name>_dq``."""
        nodes = [
            (f"{name}_q", "QuantizeLinear", [source, f"{name}_scale", f"{name}_zero"], [f"{name}_codes"], {}),
            (f"{name}_dq", "DequantizeLinear", [f"{name}_codes", f"{name}_scale", f"{name}_zero"], [f"{name}_dq"], {}),
        ]
        return nodes, {f"{name}_scale": np.float32(scale), f"{name}_zero": np.int8(0)}

    def quantized_weight(self, name, weight):
        """A node and arrays of an INT8 weight with a scale for each output channel; the result is ``<name>_dq``."""
        scale = np.abs(weight).reshape(len(weight), -1).max(axis=1).astype(np.float32) / 127
        codes = np.rint(weight / scale.reshape(-1, *[1] * (weight.ndim - 1))).astype(np.int8)
        arrays = {f"{name}_codes": codes, f"{name}_scale": scale, f"{name}_zero": np.zeros(len(weight), np.int8)}
        return [(f"{name}_dq", "DequantizeLinear", list(arrays), [f"{name}_dq"], {"axis": 0})], arrays

    def run(self, model, feeds):
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.log_severity_level = 3
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        return session.run(None, feeds)

    def edit(self, model, change):
        """Apply ``change`` to the model as an onnx-ir model, and give its return value and the changed model, which must be valid."""
        edited = ir.from_proto(model)
        answer = change(edited)
        proto = ir.to_proto(edited)
        onnx.checker.check_model(proto, full_check=True)
        return answer, proto

    def types(self, model):
        """The element type of each tensor by name, inferred by onnx from the inputs alone."""
        bare = onnx.ModelProto()
        bare.CopyFrom(model)
        del bare.graph.value_info[:]
        inferred = onnx.shape_inference.infer_shapes(bare, strict_mode=True).graph
        values = (*inferred.value_info, *inferred.input, *inferred.output)
        kinds = {value.name: value.type.tensor_type.elem_type for value in values}
        return kinds | {tensor.name: tensor.data_type for tensor in inferred.initializer}

    def kinds(self, model):
        return Counter(node.op_type for node in model.graph.node)


@pytest.fixture
def bench() -> Workbench:
    return Workbench()


@pytest.fixture(scope="session")
def shared_bench() -> Workbench:
    """A workbench for property tests, which cannot take a fixture of function scope."""
    return Workbench()
