"""Write the tables and figures of the README and of docs/numbers.md from the result files.

python -m benchmarks.readme
python -m benchmarks.readme --check

What stands between ``<!-- table: NAME -->`` and ``<!-- /table -->`` is drawn from the newest result files that fit, which are named below
the table. A figure inside a sentence stands between ``<!-- figure: NAME -->`` and ``<!-- /figure -->``.
"""

from __future__ import annotations

import contextlib
import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.machine import RESULTS
from benchmarks.parser import make_parser
from benchmarks.processes import ROOT
from edge_effdet.artifacts import write_text
from edge_effdet.cli import Result, run_verb, table
from edge_effdet.errors import EdgeEffDetError, InputError

DOCUMENTS = ("README.md", "docs/numbers.md", "benchmarks/README.md")
CONTENDED = 0.1
"""The share of the processors that other processes took above which a file is not published: threads that wait for each other then lose
far more than that share, and the ways differ in how much."""

MARKED = re.compile(r"(<!-- (table|figure): ([\w-]+) -->)(.*?)(<!-- /\2 -->)", re.DOTALL)
Row = tuple[str, ...]


@dataclass
class Results:
    """The result files, and which of them were asked for.

    Attributes:
        folder: where they lie, a folder a device.
        used: the files that ``newest`` gave, by path relative to ``folder``.
    """

    folder: Path = RESULTS
    used: dict[str, Mapping[str, Any]] = field(default_factory=dict)

    def newest(self, *names: str, vnni: bool | None = None, part: str = "") -> Any:
        """The content of the newest file, which counts as used. See ``newest_path``."""
        path, result = self.newest_path(*names, vnni=vnni, part=part)
        self.used[path] = result
        return result

    def newest_path(self, *names: str, vnni: bool | None = None, part: str = "") -> tuple[str, Any]:
        """The newest file of a machine that did little else, by its path relative to ``folder``, and its content.

        Args:
            names: its name is one of these.
            vnni: whether its processor has VNNI; None for either.
            part: what it has, of the whole file or of its first model; empty for anything.

        Raises:
            InputError: there is none.
        """
        found = []
        for path in self.folder.glob("*/*.json"):
            result = json.loads(path.read_text(encoding="utf-8"))
            if result.get("name") not in names or vnni not in (None, result["machine"]["vnni"]):
                continue
            if result.get("load", {}).get("others", 0) > CONTENDED:
                continue
            if not part or part in {**result, **(result.get("models") or [{}])[0]}:
                found.append((result["measured_at"], path.relative_to(self.folder).as_posix(), result))
        if not found:
            where = "" if vnni is None else f" of a processor {'with' if vnni else 'without'} VNNI"
            raise InputError(
                f"There is no result file {' or '.join(names)}{where} that was measured without much other load; run the "
                "benchmark that writes it."
            )
        _, path, result = max(found, key=lambda each: each[:2])
        return path, result

    def newest_by_processor(self, name: str) -> list[Any]:
        """The content of the newest file of each kind of processor that has one, which all count as used."""
        found = []
        for vnni in (False, True):
            with contextlib.suppress(InputError):
                found.append(self.newest(name, vnni=vnni))
        return found


SETS = {
    "bccd": "lite0, BCCD",
    "playing-cards": "lite0, playing cards",
    "quickstart": "lite0, drawn scenes",
    "bccd-d0": "D0, BCCD",
}
"""The trained models and their test images, by the end of the result files' names."""

FULL_RANGE, OPENVINO = ", weights to 127", ", by OpenVINO"


def draw_int8(results: Results) -> list[Row]:
    """INT8 on three kinds of processor."""
    rows: list[Row] = [("model, test images", "AP FP32", "AVX2, by OpenVINO: drop", "exact: drop", "INT8 MACs")]
    for end, title in SETS.items():
        result = results.newest(f"accuracy-weight-codes-{end}", vnni=False)
        ways = _by_way(result)
        way = _best_int8(ways)
        title += ", one convolution high" if "high:" in way else ""
        rows.append(
            (
                f"{title}, {result['evaluation']['images']}",
                f"{100 * ways['FP32']['AP']:.1f}",
                _drop(ways[f"{way}{OPENVINO}"]),
                _drop(ways[way]),
                f"{100 * ways[way]['int8_mac_fraction']:.1f} %",
            )
        )
    return rows


def draw_processors(results: Results) -> list[Row]:
    """The shipped model in FP32 and as the engine that ``make engine`` builds, a row for each kind of processor that it was measured on."""
    rows: list[Row] = [("processor", "AP FP32", "INT8 loses (95 %)", "FP32", "INT8")]
    rows += [
        (
            _processor(result),
            f"{100 * result['reference_AP']:.1f}",
            _drop(result),
            f"{result['reference_median_ms']:.1f} ms",
            f"{result['median_ms']:.1f} ms",
        )
        for result in results.newest_by_processor("quickstart")
    ]
    # Measured before weights were kept within 7 bits.
    result = results.newest("accuracy-openvino-bccd", vnni=True)
    full, int8 = (_by_way(result)[f"{way}{OPENVINO}"] for way in ("FP32", "INT8, ours"))
    times = [f"{way['median_ms']:.1f} ms" for way in (full, int8)]
    rows.append((f"{_processor(result)}; 8-bit weights", f"{100 * full['AP']:.1f}", _drop(int8), *times))
    return rows


def draw_quantizers(results: Results) -> list[Row]:
    """AP and points lost: what other ways to quantize lose on the same networks and images, and what ours does."""
    sets = {end: _by_way(results.newest(f"accuracy-{end}")) for end in SETS}
    rows: list[Row] = [("way", "BCCD", "cards", "scenes", "D0, BCCD", "to quantize, BCCD")]
    for way in dict.fromkeys(way for ways in sets.values() for way in ways):
        # Our other methods are in docs/int8.md.
        if way.startswith("INT8, ours, ") and "high:" not in way:
            continue
        cells = [
            f"{100 * row['AP']:.1f} {row['drop']:+.2f}" if (row := ways.get(way)) else "" for ways in sets.values()
        ]
        cost = sets["bccd"].get(way, {}).get("to_quantize")
        name = "INT8, ours, one high" if "high:" in way else way
        rows.append((name, *cells, f"{cost['seconds']:.0f} s, {cost['peak_mb_over_idle']} MB" if cost else ""))
    return rows


def draw_ways(results: Results, vnni: bool) -> list[Row]:
    """From JPEG bytes to boxes, all ways."""
    models = results.newest("run", "runner", vnni=vnni, part="latency")["models"]
    titles = [(f"{_short(each)}, {each['image_size'][0]} px", "/ FP32", "/ less") for each in models]
    rows: list[Row] = [("way", *(cell for title in titles for cell in title))]
    timed = [{row["way"]: row for row in each["latency"]["rows"]} for each in models]
    for way in dict.fromkeys(way for ways in timed for way in ways):
        cells = [way.replace("openvino", "OpenVINO")]
        for each, ways in zip(models, timed, strict=True):
            ratios = (each["latency"][key].get(way) for key in ("times_as_fast", "times_as_fast_reduced"))
            cells.append(f"{ways[way]['median_ms']:.1f} ms" if way in ways else "")
            cells += ["" if ratio is None else f"{ratio:.2f}" for ratio in ratios]
        rows.append(tuple(cells))
    return rows


def draw_half(results: Results) -> list[Row]:
    """FP16 and INT8 by OpenVINO: milliseconds of the network and points of AP lost."""
    rows: list[Row] = [("model", "FP32", "FP16, in BF16", "drop", "INT8", "drop")]
    for end, title in SETS.items():
        ways = _by_way(results.newest(f"accuracy-openvino-{end}", vnni=True))
        best = _best_int8(ways)
        title += ", one convolution high" if "high:" in best else ""
        full, half, int8 = (ways[f"{way}{OPENVINO}"] for way in ("FP32", "FP16", best))
        times = [f"{way['median_ms']:.1f} ms" for way in (full, half, int8)]
        rows.append((title, times[0], times[1], _drop(half), times[2], _drop(int8)))
    return rows


def draw_graph(results: Results) -> list[Row]:
    """Nodes, layers and milliseconds of the head tensors, by what made the graph."""
    models = results.newest("graph")["models"]
    header = [(f"{_short(each)}: nodes", "layers", "engine", "time", "ours/this") for each in models]
    rows: list[Row] = [("graph", *(cell for cells in header for cell in cells))]
    names = dict.fromkeys(
        row.get("graph") or row["way"] for each in models for row in (*each["nodes"], *each["latency"])
    )
    for name in names:
        cells = [name]
        for each in models:
            nodes = next((row for row in each["nodes"] if row["graph"] == name), {})
            layers = next((row for row in each.get("layers", ()) if row["graph"] == name), {})
            timed = next((row for row in each["latency"] if row["way"] == name), {})
            cells += [
                _cell(value)
                for value in (nodes.get("counted"), layers.get("network_layers"), layers.get("engine_layers"))
            ]
            cells += [_cell(timed.get("median_ms"), "{:.1f} ms"), _cell(timed.get("keep_over_this"), "{:.2f}")]
        rows.append(tuple(cells))
    return rows


TABLES: Mapping[str, Callable[[Results], list[Row]]] = {
    "processors": draw_processors,
    "int8": draw_int8,
    "quantizers": draw_quantizers,
    "ways-vnni": lambda results: draw_ways(results, True),
    "ways-avx2": lambda results: draw_ways(results, False),
    "half": draw_half,
    "graph": draw_graph,
}


def _runner(results: Results, model: int) -> Any:
    return results.newest("runner", vnni=True, part="folder")["models"][model]


def _starts(results: Results) -> Any:
    return results.newest("runner-process", vnni=True)["models"][0]["process"]


def _saturated(results: Results, end: str) -> str:
    way = f"INT8, ours{FULL_RANGE}{OPENVINO}"
    return f"{_by_way(results.newest(f'accuracy-weight-codes-{end}', vnni=False))[way]['drop']:.1f}"


def _ap50(results: Results, ours: bool) -> str:
    rows = [row for row in results.newest("training-bccd")["rows"] if (row["way"] == "ours") == ours]
    return " and ".join(f"{100 * row['AP50']:.1f}" for row in sorted(rows, key=lambda row: row["seed"]))


FIGURES: Mapping[str, Callable[[Results], str]] = {
    "saturated-bccd": lambda of: _saturated(of, "bccd"),
    "saturated-scenes": lambda of: _saturated(of, "quickstart"),
    "outside-lite0": lambda of: f"{_runner(of, 0)['latency']['not_the_network']['onnxruntime']['outside_ms']:.1f} ms",
    "outside-d0": lambda of: f"{_runner(of, 1)['latency']['not_the_network']['onnxruntime']['outside_ms']:.1f} ms",
    "folder-lite0": lambda of: f"{_runner(of, 0)['folder']['onnxruntime']['pipeline_over_loop']:.2f}",
    "folder-d0": lambda of: f"{_runner(of, 1)['folder']['onnxruntime']['pipeline_over_loop']:.2f}",
    "start": lambda of: f"{_starts(of)['onnxruntime']['median_seconds']:.2f} s",
    "start-int8": lambda of: f"{_starts(of)['openvino, INT8']['median_seconds']:.2f} s",
    "first-start-int8": lambda of: f"{_starts(of)['openvino, INT8']['first_seconds']:.1f} s",
    "memory": lambda of: f"{_starts(of)['onnxruntime']['peak_mb']:.0f}",
    "memory-int8": lambda of: f"{_starts(of)['openvino, INT8']['peak_mb']:.0f} MB",
    "growth-images": lambda of: (
        f"{of.newest('runner-growth', 'runner-process', part='growth')['models'][0]['growth']['images']:,}"
    ),
    "install": lambda of: f"{of.newest('runner', 'runner-process', part='install')['install']['total_mb']:.0f} MB",
    "step-speed": lambda of: f"{of.newest('training-steps-lite0')['rows'][0]['ours_over_this_speed']:.2f}",
    "ap50-ours": lambda of: _ap50(of, True),
    "ap50-peer": lambda of: _ap50(of, False),
}


def draw(kind: str, name: str, folder: Path = RESULTS) -> str:
    """What stands between the markers of a table or of a figure.

    Raises:
        InputError: nothing of this name is known, or a result file is missing.
    """
    known = TABLES if kind == "table" else FIGURES
    if name not in known:
        raise InputError(f"There is no {kind} {name}; the README may name {', '.join(known)}.")
    results = Results(folder)
    drawn = known[name](results)
    if isinstance(drawn, str):
        return drawn
    return f"\n```\n{table(drawn)}\n```\n\n{describe_sources(results.used)}\n"


def describe_sources(used: Mapping[str, Mapping[str, Any]]) -> str:
    """The result files, their processor, whether they had it alone, and their command, for people."""
    groups: dict[str, list[str]] = {}
    for path, result in used.items():
        machine, others = result["machine"], result.get("load", {}).get("others", 0)
        about = f"Measured on {machine['cores']} core{'s' * (machine['cores'] > 1)} of {machine['processor']} "
        about += "with VNNI" if machine["vnni"] else "without VNNI"
        about += f", of which other processes took {100 * others:.0f} %" if others >= 0.01 else ""
        about += f", by `{result['command']}`" if "command" in result else ""
        groups.setdefault(about, []).append(f"`{path}`")
    return "\n".join(f"{about}:\n" + ",\n".join(paths) for about, paths in groups.items())


def renew(text: str, folder: Path = RESULTS) -> tuple[str, list[str]]:
    """A document with all its tables and figures drawn anew, and the names of those that were otherwise before."""
    stale = []

    def put(found: re.Match[str]) -> str:
        drawn = draw(found[2], found[3], folder)
        if drawn != found[4]:
            stale.append(f"{found[2]} {found[3]}")
        return f"{found[1]}{drawn}{found[5]}"

    return MARKED.sub(put, text), stale


def _short(model: Mapping[str, Any]) -> str:
    return model["model"].removeprefix("tf_efficientdet_").replace("d", "D")


def _by_way(result: Mapping[str, Any]) -> dict[str, Any]:
    return {row["way"]: row for row in result["rows"]}


def _best_int8(ways: Mapping[str, Any]) -> str:
    """Our INT8 with a convolution in high precision where that was measured."""
    high = [
        way for way in ways if way.startswith("INT8, ours, high:") and not way.endswith((FULL_RANGE, "by OpenVINO"))
    ]
    return next((way for way in high if f"{way}{OPENVINO}" in ways), "INT8, ours")


def _processor(result: Mapping[str, Any]) -> str:
    machine = result["machine"]
    return f"{machine['processor']}, {machine['cores']} cores, {'VNNI' if machine['vnni'] else 'AVX2, no VNNI'}"


def _drop(row: Mapping[str, Any]) -> str:
    return "{:+.2f} ({:+.2f} to {:+.2f})".format(row["drop"], *row["drop_interval"])


def _cell(value: Any, shape: str = "{}") -> str:
    return "-" if value is None else shape.format(value)


def _run(arguments: Any) -> Result:
    stale = {}
    for document in DOCUMENTS:
        path = ROOT / document
        text, stale[document] = renew(path.read_text(encoding="utf-8"))
        if stale[document] and not arguments.check:
            write_text(path, text)
    told = "; ".join(f"{document}: {', '.join(names)}" for document, names in stale.items() if names)
    if arguments.check and told:
        why = EdgeEffDetError(f"These are not what the result files say: {told}; run python -m benchmarks.readme.")
        return Result("", stale, why)
    return Result(f"written anew: {told}" if told else "all is as the result files say", stale)


def main(argv: Sequence[str] | None = None) -> int:
    parser = make_parser("readme", "Write the tables of the README and of docs/numbers.md from the result files.")
    parser.add_argument("--check", action="store_true", help="write nothing, and say what differs")
    return run_verb(parser, _run, argv)


if __name__ == "__main__":
    sys.exit(main())
