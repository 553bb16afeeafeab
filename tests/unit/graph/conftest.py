"""Build a small graph, apply a rule, and compare what onnxruntime computes before and after."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from edge_effdet.graph.rule import apply_rule

# A rewritten graph computes the same numbers, rounded in another order.
RELATIVE_ERROR = 1e-5


class Workbench:
    """Makes small graphs and applies rules; ``self.before`` and ``self.after`` are the models of the last ``apply``."""

    def make_model(self, nodes, initializers, inputs, outputs, opset=18):
        """A graph of nodes, each (op, inputs, outputs, attributes), whose inputs and outputs are float32 with the given shapes."""
        graph = helper.make_graph(
            [
                helper.make_node(op, list(taken), list(given), name=f"{op}_{position}", **attributes)
                for position, (op, taken, given, attributes) in enumerate(nodes)
            ],
            "tiny",
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs.items()],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in outputs.items()],
            [numpy_helper.from_array(np.asarray(array), name) for name, array in initializers.items()],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
        onnx.checker.check_model(model, full_check=True)
        return onnx.shape_inference.infer_shapes(model)

    def run(self, model, feeds):
        options = onnxruntime.SessionOptions()
        # onnxruntime's own fusions would do to the first graph what the rule does.
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        return session.run(None, feeds)

    def apply(self, rule, model, batch=1, seed=0):
        """Apply a rule, and assert that the result is valid, has the same outputs and computes the same numbers."""
        rewritten = ir.from_proto(model)
        report = apply_rule(rewritten, rule)
        proto = ir.to_proto(rewritten)
        onnx.checker.check_model(proto, full_check=True)
        assert [value.name for value in proto.graph.input] == [value.name for value in model.graph.input]
        assert [value.name for value in proto.graph.output] == [value.name for value in model.graph.output]
        rng = np.random.default_rng(seed)
        feeds = {}
        for value in model.graph.input:
            shape = [axis.dim_value or batch for axis in value.type.tensor_type.shape.dim]
            feeds[value.name] = rng.normal(0, 2, shape).astype(np.float32)
        for before, after in zip(self.run(model, feeds), self.run(proto, feeds), strict=True):
            assert before.shape == after.shape
            assert np.isfinite(before).all()
            assert np.abs(after - before).max() <= RELATIVE_ERROR * np.abs(before).max()
        assert report.rule == rule.name
        self.before, self.after = model, proto
        return report

    def kinds(self, model=None):
        return Counter(node.op_type for node in (model or self.after).graph.node)

    def initializers(self):
        return {tensor.name: numpy_helper.to_array(tensor) for tensor in self.after.graph.initializer}


@pytest.fixture
def bench() -> Workbench:
    return Workbench()


@pytest.fixture(scope="session")
def shared_bench() -> Workbench:
    """A workbench for property tests, which cannot take a fixture of function scope."""
    return Workbench()
