"""Records of engines that were never built, for tests of what reads them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from edge_effdet.artifacts import Engine, EngineRecord, ModelSpec, engine_json_path, write_json
from edge_effdet.artifacts.record import Proof, record_to_json

_PROOF = Proof(
    int8_mac_fraction=0.0,
    fp16_mac_fraction=0.0,
    bf16_mac_fraction=0.0,
    fp32_mac_fraction=1.0,
    convolution_macs=1000,
    graph_int8_mac_fraction=0.0,
    counted_on="graph",
    source=None,
    layers_kept_high_precision=(),
    layers_below_graph=(),
    layers_not_named=(),
    final_convolutions={},
)
_RECORD = EngineRecord(
    engine="x.onnx",
    engine_sha256="ab" * 32,
    spec=ModelSpec("tiny", (16, 16), ("thing",), (1,)),
    backend="onnxruntime",
    backend_version="1",
    target="CPU",
    precision="fp32",
    proof=_PROOF,
    rewrites={},
    parents={},
    built_at="2026-01-01T00:00:00+00:00",
)


def make_record(**changes: Any) -> EngineRecord:
    """The record of an FP32 engine of which nothing was measured, with some of its fields changed."""
    return replace(_RECORD, **changes)


def write_record(engine: Engine) -> None:
    """Write an engine's record into the JSON beside its file."""
    write_json(engine_json_path(engine.path), record_to_json(engine.require_record()))
