"""What a build says to people: the table, and the remarks below it."""

from __future__ import annotations

import shlex
import shutil
import sys
from pathlib import Path

from edge_effdet.artifacts import Engine, EngineRecord
from edge_effdet.artifacts.record import Accuracy, Golden, Latency, Verdict
from edge_effdet.backends.arithmetic import cpu_has_dot_products
from edge_effdet.backends.base import get_backend
from edge_effdet.cli import table

NOT_MEASURED = "not measured"


def summary_table(engine: Engine) -> str:
    """The engine for people, below the FP32 graph that it is compared with."""
    record = engine.require_record()
    accuracy, reference = record.accuracy, record.reference

    def row(
        precision: str, backend: str, size: int, ap: float | None, drop: str, share: float, latency: Latency | None
    ) -> tuple[str, ...]:
        speed = f"{latency.median_ms:.1f} ms" if latency is not None else "does not run here"
        points = NOT_MEASURED if ap is None else f"{100 * ap:.1f}"
        return precision, backend, f"{size / 1e6:.1f} MB", points, drop, f"{100 * share:.1f} %", speed

    rows: list[tuple[str, ...]] = [("precision", "backend", "size", "AP", "AP drop", "MACs in INT8", "median latency")]
    if reference is not None:
        before = None if accuracy is None else accuracy.reference_AP
        rows.append(row("FP32", "onnxruntime", reference.bytes, before, "-", 0.0, reference.latency))
    after = None if accuracy is None else accuracy.AP
    drop = NOT_MEASURED if accuracy is None or accuracy.drop is None else f"{accuracy.drop:+.2f}"
    size, share = engine.path.stat().st_size, record.proof.int8_mac_fraction
    rows.append(row(engine.precision.upper(), engine.backend, size, after, drop, share, record.latency))
    return table(rows)


def build_report(engine: Engine, photos: Path | None = None, data: Path | None = None) -> str:
    """All that a build says in the end: the table, the files, remarks, and what to do next.

    Args:
        engine: with its record.
        photos: a folder of pictures for the command that shows what the engine finds; None for one that the reader has to name.
        data: the labelled images that the engine was judged by; None where there were none.
    """
    record = engine.require_record()
    lines = [summary_table(engine), "", f"engine   {engine.path}", f"proof    {engine.json_path}"]
    if record.accuracy is not None:
        lines.append(f"picture  {engine.path.with_suffix('.jpg')}")
    if record.golden is not None:
        lines.append(f"golden   {_golden_line(record.golden)}")
    if record.gate is not None:
        lines.extend(_gate_remarks(record, record.gate))
    if record.accuracy is not None:
        lines.extend(_accuracy_remarks(record, record.accuracy))
    lines.extend(_arithmetic_remark(record))
    lines.extend(_speed_remark(record))
    if record.accuracy is None:
        lines.append("\nNo accuracy was measured; give labelled images with `eval_data` D.")
    if record.latency is None:
        source = "" if record.accuracy is None else ": the AP above is that of the graph it was compiled from"
        lines.append(
            f"\nThe engine cannot run on this machine, so it is unproven{source}. On the target, run "
            f"python -m edge_effdet.verify --engine {engine.path.name} --data D."
        )
    else:
        lines.extend(_next_commands(engine.path, photos, data))
    return "\n".join(lines)


def _next_commands(engine: Path, photos: Path | None, data: Path | None) -> list[str]:
    """What one does with an engine: look at what it finds, decide by the report, take it to a device."""
    given, folder = f"--engine {_typed(engine)}", engine.parent
    judged = f" --data {_typed(data)}" if data is not None else ""
    command = f"{_interpreter()} -m edge_effdet"
    return [
        "\nnext     look, decide, deploy:",
        f"{command}.detect {given} --source {_typed(photos) if photos else 'FOLDER_OF_PICTURES'} --output {_typed(folder / 'found')}",
        f"{command}.benchmark {given}{judged} --output {_typed(folder / 'report')}",
        f"{command}.deploy {given} --target jetson-orin-nano --output {_typed(folder / 'bundles')}",
    ]


def _interpreter() -> str:
    """The Python that has this package, as a person types it: ``make engine`` is run without the virtual environment's being active."""
    found = shutil.which("python")
    return "python" if found and Path(found).samefile(sys.executable) else _typed(Path(sys.executable))


def _typed(path: Path) -> str:
    """A path as a person types it in a shell: from the working directory where it is below that, quoted where it has to be."""
    here = Path.cwd()
    return shlex.quote(str(path.relative_to(here) if path.is_relative_to(here) else path))


def _golden_line(golden: Golden) -> str:
    """Which pictures travel inside the JSON: a user may not want to give their own away."""
    if golden.kind == "pictures":
        return (
            f"{len(golden.pictures)} of the pictures given are stored in the JSON, to check the engine on other machines; "
            "`golden` drawn stores drawn ones instead"
        )
    if golden.kind == "drawn":
        return f"{len(golden.pictures)} drawn pictures are in the JSON, to check the engine on other machines"
    return f"none, so nothing checks the engine on other machines ({golden.why or 'as asked'})"


def _gate_remarks(record: EngineRecord, gate: Verdict) -> list[str]:
    """What was tried before this engine, and whether so few images could tell that it is within the budget."""
    lines = []
    if gate.tried_before:
        failed = "; ".join(gate.tried_before)
        lines.append(
            f"\n{record.precision.upper()} by {record.backend} was built in place of what was not right: {failed}."
        )
    # The table shows a drop that says nothing.
    blind = gate.decided_by == "nothing" and record.accuracy is not None and record.accuracy.drop is not None
    if gate.decided_by == "interval" or blind or (gate.decided_by == "no limit" and gate.budget_was == "asked"):
        lines.append(f"\nThe engine passes, though {gate.text}.")
    return lines


def _accuracy_remarks(record: EngineRecord, accuracy: Accuracy) -> list[str]:
    """How sure the drop is, and whether scores were flattened."""
    lines = []
    # An FP32 engine is its own reference, and always drops by 0.
    if accuracy.drop is not None and accuracy.drop_interval is not None and record.precision != "fp32":
        low, high = accuracy.drop_interval
        noise = f", so these {accuracy.images} images show no difference" if low <= 0 <= high else ""
        change = f"{'loses' if accuracy.drop > 0 else 'gains'} {abs(accuracy.drop):.2f} points of AP"
        lines.append(
            f"\n{record.precision.upper()} {change}; with 95 % confidence it is between {_change(low)} and {_change(high)}{noise}."
        )
    if accuracy.confidence is not None and accuracy.confidence.flattened:
        tops = accuracy.confidence.mean_top_score
        lines.append(
            f"\nScores were flattened: the best one in a picture is {tops.built:.2f} on average and was "
            f"{tops.reference:.2f} at FP32; lower your threshold, or keep the class head high with `keep_high` 'class_net.*'."
        )
    return lines


def _change(drop: float) -> str:
    return f"a {'loss' if drop > 0 else 'gain'} of {abs(drop):.2f}"


def _arithmetic_remark(record: EngineRecord) -> list[str]:
    """In what the processor computed, where the graph says FP16 and it has BF16 or no half precision."""
    arithmetic = None if record.latency is None else record.latency.arithmetic
    what = "what is not INT8" if record.precision == "int8" else "FP16"
    if arithmetic == "bf16":
        return [
            f"\nThis processor has BF16 in place of FP16: {record.backend} computed {what} in it, as measured above."
        ]
    if arithmetic == "f32" and record.precision == "fp16":
        return [f"\nThis processor has no half precision: {record.backend} computed FP16 in FP32, which is no faster."]
    return []


def _speed_remark(record: EngineRecord) -> list[str]:
    """What a person must know before reading the latency of INT8 on a CPU that gains nothing by it."""
    reference, latency = record.reference, record.latency
    if not get_backend(record.backend).TRAITS.on_cpu or record.precision != "int8":
        return []
    if reference is None or latency is None or latency.median_ms < reference.latency.median_ms:
        return []
    fast = cpu_has_dot_products()
    advice = ""
    if record.backend == "onnxruntime" and fast and record.race is None:
        advice = " OpenVINO may run it faster: `backend` fastest finds out."
    return [
        f"\n{record.backend} runs INT8 no faster than onnxruntime runs FP32 on this CPU, {'though' if fast else 'and'} it has "
        f"{'' if fast else 'no '}VNNI instructions. Here the build is a check of accuracy, not a gain in speed. The gain is on "
        f"the GPU that the graph is for.{advice}"
    ]
