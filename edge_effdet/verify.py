"""``python -m edge_effdet.verify``: compare what an engine finds on this machine with what it found where it was built.

It repeats the golden check (``runtime.golden``) and, if asked, measures the AP and compares each layer (``quant.layers``). The
engine's files stay as they are.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_effdet.artifacts import Engine, load_engine, refuse_overwrite, require_writable, write_json
from edge_effdet.artifacts.reading import to_json
from edge_effdet.backends.base import BACKENDS
from edge_effdet.backends.fingerprint import describe_machine, machine_fingerprint
from edge_effdet.building.gate import DEFAULT_BUDGET
from edge_effdet.building.verify import compare_engine_layers, verify_engine
from edge_effdet.cli import Result, add_options, make_parser, run_verb, table
from edge_effdet.data.base import match_classes, samples_sha256
from edge_effdet.data.frames import LabelOptions
from edge_effdet.data.registry import read_dataset
from edge_effdet.errors import AccuracyGateFailed, EdgeEffDetError, UsageError
from edge_effdet.evaluation.run import SPLIT_ORDER, evaluate_engine
from edge_effdet.evaluation.seen import calibrated_on
from edge_effdet.runtime.golden import Check

if TYPE_CHECKING:
    from edge_effdet.quant.layers import LayerComparison

logger = logging.getLogger("edge_effdet.verify")

HEADER: tuple[str, ...] = ("check", "where it was proven", "on this machine", "difference", "allowed", "")


def make_argument_parser() -> argparse.ArgumentParser:
    parser = make_parser(
        "verify",
        "Check that an engine finds on this machine what it found where it was built. The engine's files stay as they are.",
        "python -m edge_effdet.verify --engine engines/quickstart.int8.onnx --layers",
    )
    parser.add_argument("--engine", type=Path, required=True, metavar="F", help="an engine that build_engine wrote")
    parser.add_argument("--data", type=Path, metavar="D", help="also measure the AP, on these labelled images")
    parser.add_argument(
        "--split",
        metavar="NAME",
        help="the split of --data (default: the one that the engine's record names, else test, else val)",
    )
    parser.add_argument(
        "--layers", action="store_true",
        help="compare each layer with the graph and with FP32, and name the first layer whose results differ",
    )  # fmt: skip
    parser.add_argument("--against", choices=tuple(BACKENDS), help="with --layers: another backend to compare with")
    parser.add_argument(
        "--reference", type=Path, metavar="F", help="with --layers: the FP32 graph (default: graphs/ beside the engine)"
    )
    parser.add_argument(
        "--output", type=Path, metavar="DIR", help="with --layers: write layers.json and layers.png here"
    )
    add_options(parser, LabelOptions)
    return parser


def _run(arguments: argparse.Namespace) -> Result:
    if not arguments.layers and (arguments.against or arguments.reference or arguments.output):
        raise UsageError("--against, --reference and --output belong to the comparison of layers; add --layers.")
    engine = load_engine(arguments.engine)
    if arguments.output is not None:
        read = [engine.path, engine.json_path, arguments.data, arguments.reference]
        refuse_overwrite([arguments.output / name for name in ("layers.json", "layers.png")], read)
        require_writable(arguments.output)
    rows, failed = [HEADER], []
    data: dict[str, Any] = {"engine": str(engine.path), "engine_sha256": engine.sha256}
    check = verify_engine(engine)
    data["golden"] = None if check is None else check.to_dict()
    data["here"] = to_json(machine_fingerprint(engine.backend))
    if check is None:
        rows.append(("golden pictures", "none were kept", "-", "-", "-", "not checked"))
    else:
        rows.append(_golden_row(check))
        if not check.passed:
            failed.append(f"on its golden pictures the scores differ by {100 * check.distance:.0f} %")
    if arguments.data is not None:
        data["accuracy"] = _measure(engine, arguments.data, arguments.split, arguments.boxes_in)
        rows.append(_accuracy_row(engine, data["accuracy"]))
        if data["accuracy"]["passed"] is False:
            failed.append(
                f"it has {100 * data['accuracy']['AP']:.1f} AP here and had {100 * data['accuracy']['proven_AP']:.1f}"
            )
    text = table(rows)
    for remark in data.get("accuracy", {}).get("remarks", ()):
        text += f"\n\n{remark}"
    if check is not None:
        text += f"\n\nproven on {describe_machine(check.proven_on)}\nthis is   {describe_machine(check.here)}"
    failure: EdgeEffDetError | None = None
    if failed:
        advice = "" if arguments.layers else "; --layers shows in which layer the results first differ"
        failure = AccuracyGateFailed(
            f"{engine.path} does not find on this machine what it found where it was proven: {' and '.join(failed)}; build it "
            f"again with python -m edge_effdet.build_engine{advice}."
        )
    if arguments.layers:
        try:
            comparison = compare_engine_layers(engine, arguments.against, arguments.reference)
            data["layers"] = comparison.to_dict()
            text += "\n\n" + _report_layers(engine, comparison, arguments.output)
        except EdgeEffDetError as error:
            # The results of the checks above are printed even if this comparison fails.
            failure = failure or error
    return Result(text, data, failure)


def _golden_row(check: Check) -> tuple[str, ...]:
    difference, allowed = f"{100 * check.distance:.1f} %", f"{100 * check.tolerance:.0f} %"
    return (
        "golden pictures",
        "the reference",
        "their scores",
        difference,
        allowed,
        "passed" if check.passed else "FAILED",
    )


def _measure(engine: Engine, data: Path, split: str | None, boxes_in: str) -> dict[str, Any]:
    proven = engine.require_record().accuracy
    dataset = match_classes(read_dataset(data, boxes_in=boxes_in), engine.spec)
    wanted = split or (proven.split if proven is not None and proven.split in ("all", *dataset.splits) else None)
    chosen, samples = dataset.choose_judged(wanted, SPLIT_ORDER)
    logger.info("measuring AP on %d images of %s (split %s)", len(samples), data, chosen)
    metrics = evaluate_engine(engine, samples)
    same = proven is not None and samples_sha256(samples) == proven.data_sha256
    return {
        "AP": metrics.AP,
        "split": chosen,
        "images": metrics.images,
        "proven_AP": proven.AP if proven is not None and same else None,
        "passed": 100 * (proven.AP - metrics.AP) <= DEFAULT_BUDGET if proven is not None and same else None,
        "remarks": list(calibrated_on(engine, dataset, samples)),
    }


def _accuracy_row(engine: Engine, measured: dict[str, Any]) -> tuple[str, ...]:
    name = f"AP, {measured['images']} images ({measured['split']})"
    here = f"{100 * measured['AP']:.1f}"
    if measured["proven_AP"] is None:
        return (
            name,
            "other images" if engine.require_record().accuracy else "not measured",
            here,
            "-",
            "-",
            "not compared",
        )
    drop = 100 * (measured["proven_AP"] - measured["AP"])
    verdict = "passed" if measured["passed"] else "FAILED"
    return name, f"{100 * measured['proven_AP']:.1f}", here, f"{-drop:+.2f}", f"{-DEFAULT_BUDGET:+g}", verdict


def _report_layers(engine: Engine, comparison: LayerComparison, output: Path | None) -> str:
    from edge_effdet.quant.layer_report import draw_layers, layer_table

    text = layer_table(comparison)
    if output is not None:
        write_json(output / "layers.json", comparison.to_dict())
        draw_layers(comparison, output / "layers.png", engine.path.name)
        text += f"\n\nwritten to {output}: layers.json, layers.png"
    return text


def main(argv: Sequence[str] | None = None) -> int:
    return run_verb(make_argument_parser(), _run, argv)


if __name__ == "__main__":
    sys.exit(main())
