"""What a build says to people: the table, and the remarks below it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edge_effdet.artifacts import Engine
from edge_effdet.backends.arithmetic import cpu_has_dot_products
from edge_effdet.backends.base import get_backend
from edge_effdet.cli import table


def summary_table(engine: Engine) -> str:
    """The engine for people, below the FP32 graph that it is compared with."""
    record = engine.record
    accuracy, proof, reference = record["accuracy"], record["proof"], record["reference"]

    def row(
        precision: str, backend: str, size: int, ap: str, drop: str, share: float, latency: dict[str, Any] | None
    ) -> Any:
        speed = f"{latency['median_ms']:.1f} ms" if latency else "does not run here"
        return precision, backend, f"{size / 1e6:.1f} MB", ap, drop, f"{100 * share:.1f} %", speed

    none = "not measured"
    rows = [("precision", "backend", "size", "AP", "AP drop", "MACs in INT8", "median latency")]
    if reference is not None:
        before = f"{100 * accuracy['reference_AP']:.1f}" if accuracy else none
        rows.append(row("FP32", "onnxruntime", reference["bytes"], before, "-", 0.0, reference["latency"]))
    drop = f"{accuracy['drop']:+.2f}" if accuracy and accuracy["drop"] is not None else none
    after = (f"{100 * accuracy['AP']:.1f}", drop) if accuracy else (none, none)
    share = proof["int8_mac_fraction"]
    size = engine.path.stat().st_size
    rows.append(row(engine.precision.upper(), engine.backend, size, *after, share, record["latency"]))
    return table(rows)


def build_report(engine: Engine) -> str:
    lines = [summary_table(engine), "", f"engine   {engine.path}", f"proof    {engine.json_path}"]
    picture = engine.path.with_suffix(".jpg")
    if engine.record["accuracy"]:
        lines.append(f"picture  {picture}")
    lines.extend(_golden_line(engine))
    lines.extend(_gate_remarks(engine))
    lines.extend(_accuracy_remarks(engine))
    lines.extend(_arithmetic_remark(engine))
    lines.extend(_speed_remark(engine))
    if not engine.record["accuracy"]:
        lines.append("\nNo accuracy was measured; add --eval-data D with labelled images.")
    if not engine.record["latency"]:
        source = ": the AP above is that of the graph it was compiled from" if engine.record["accuracy"] else ""
        lines.append(
            f"\nThe engine cannot run on this machine, so it is unproven{source}. On the target, run "
            f"python -m edge_effdet.verify --engine {engine.path.name} --data D."
        )
    return "\n".join(lines)


def _golden_line(engine: Engine) -> list[str]:
    """Which pictures travel inside the JSON: a user may not want to give their own away."""
    golden: Mapping[str, Any] = engine.record.get("golden") or {}
    if golden.get("kind") == "pictures":
        count = len(golden["pictures"])
        return [
            f"golden   {count} of the pictures given are in the JSON, to check the engine on other machines (--golden drawn: not yours)"
        ]
    if golden.get("kind") == "drawn":
        return [
            f"golden   {len(golden['pictures'])} drawn pictures are in the JSON, to check the engine on other machines"
        ]
    return (
        [f"golden   none, so nothing checks the engine on other machines ({golden['why']})"]
        if golden.get("why")
        else []
    )


def _gate_remarks(engine: Engine) -> list[str]:
    """What was tried before this engine, and whether so few images could tell that it is within the budget."""
    gate: Mapping[str, Any] = engine.record.get("gate") or {}
    tried = gate.get("tried_before") or ()
    lines = (
        [
            f"\n{engine.precision.upper()} by {engine.backend} was built in place of what was not right: {'; '.join(tried)}."
        ]
        if tried
        else []
    )
    if gate.get("decided_by") == "interval" or (
        gate.get("decided_by") == "no limit" and gate.get("budget_was") == "asked"
    ):
        lines.append(f"\nThe engine passes, though {gate['text']}.")
    return lines


def _accuracy_remarks(engine: Engine) -> list[str]:
    """How sure the drop is, and whether scores were flattened."""
    accuracy: Mapping[str, Any] = engine.record["accuracy"] or {}
    lines = []
    # An FP32 engine is its own reference, and always drops by 0.
    if accuracy.get("drop_interval") and engine.precision != "fp32":
        low, high = accuracy["drop_interval"]
        noise = "; 0 is among them, so it is inside the noise of these images" if low <= 0 <= high else ""
        lines.append(
            f"\nThe AP drop of {accuracy['drop']:+.2f} is known to within {low:+.2f} and {high:+.2f} (95 %, {accuracy['images']} "
            f"images{noise})."
        )
    if (accuracy.get("confidence") or {}).get("flattened"):
        tops = accuracy["confidence"]["mean_top_score"]
        lines.append(
            f"\nScores were flattened: the best one in a picture is {tops['built']:.2f} on average and was "
            f"{tops['reference']:.2f} at FP32; lower your threshold, or keep the class head high with --keep-high 'class_net.*'."
        )
    return lines


def _arithmetic_remark(engine: Engine) -> list[str]:
    """In what the processor computed, where the graph says FP16 and it has BF16 or no half precision."""
    arithmetic = (engine.record["latency"] or {}).get("arithmetic")
    what = "what is not INT8" if engine.precision == "int8" else "FP16"
    if arithmetic == "bf16":
        return [
            f"\nThis processor has BF16 in place of FP16: {engine.backend} computed {what} in it, as measured above."
        ]
    if arithmetic == "f32" and engine.precision == "fp16":
        return [f"\nThis processor has no half precision: {engine.backend} computed FP16 in FP32, which is no faster."]
    return []


def _speed_remark(engine: Engine) -> list[str]:
    """What a person must know before reading the latency of INT8 on a CPU that gains nothing by it."""
    if not get_backend(engine.backend).TRAITS.on_cpu or engine.precision != "int8":
        return []
    reference, latency = engine.record["reference"], engine.record["latency"]
    if reference is None or latency["median_ms"] < reference["latency"]["median_ms"]:
        return []
    vnni = cpu_has_dot_products()
    advice = ""
    if engine.backend == "onnxruntime" and vnni and "race" not in engine.record:
        advice = " OpenVINO may run it faster: --backend fastest finds out."
    return [
        f"\n{engine.backend} runs INT8 no faster than onnxruntime runs FP32 on this CPU, {'though' if vnni else 'and'} it has "
        f"{'' if vnni else 'no '}VNNI instructions. Here the build is a check of accuracy, not a gain in speed. The gain is on "
        f"the GPU that the graph is for.{advice}"
    ]
