"""What an engine's own record says, for the report: the proof, the calibration, the gate, and the chain of hashes."""

from __future__ import annotations

from edge_effdet.artifacts import Engine
from edge_effdet.artifacts.record import Accuracy
from edge_effdet.benchmarking.record import Evidence


def read_evidence(engine: Engine) -> Evidence:
    """The part of a row that the engine's record gives; what the golden check says here is added when the engine is loaded."""
    record = engine.require_record()
    proof = record.proof
    return Evidence(
        proof_source=proof.source or "the graph that was compiled; the backend does not tell",
        int8_mac_fraction=proof.int8_mac_fraction,
        fp16_mac_fraction=proof.fp16_mac_fraction,
        bf16_mac_fraction=proof.bf16_mac_fraction,
        fp32_mac_fraction=proof.fp32_mac_fraction,
        layers_kept_high_precision=proof.layers_kept_high_precision,
        layers_below_graph=proof.layers_below_graph,
        final_convolutions=dict(proof.final_convolutions),
        calibration=record.calibration,
        gate=record.gate,
        built_accuracy="" if record.accuracy is None else _accuracy_text(record.accuracy),
        golden="not checked here: the engine was not loaded",
        built_on=None if record.golden is None else record.golden.fingerprint,
        chain={"engine": record.engine_sha256, **record.parents},
        built_at=record.built_at,
    )


def _accuracy_text(accuracy: Accuracy) -> str:
    where = "on the engine itself" if accuracy.measured_on == "engine" else "on the graph that it was compiled from"
    text = f"AP {100 * accuracy.AP:.1f} when it was built, {where}, on {accuracy.images} images of the split {accuracy.split}"
    if accuracy.drop is None:
        return text
    interval = (
        ""
        if accuracy.drop_interval is None
        else f" ({accuracy.drop_interval[0]:+.2f} to {accuracy.drop_interval[1]:+.2f})"
    )
    return f"{text}; {accuracy.drop:+.2f} points lost against FP32{interval}"
