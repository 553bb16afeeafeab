"""The tables and figures of the README and of docs/numbers.md are those of the result files, and anything else is found."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from benchmarks import readme
from benchmarks.machine import RESULTS
from benchmarks.processes import ROOT
from benchmarks.readme import DOCUMENTS, FIGURES, MARKED, TABLES, Results, draw, main, renew
from edge_effdet.errors import InputError

TEXT = (ROOT / "docs" / "numbers.md").read_text(encoding="utf-8")
BOTH = (ROOT / "README.md").read_text(encoding="utf-8") + TEXT


@pytest.mark.parametrize("document", DOCUMENTS)
def test_the_text_says_what_the_result_files_say(document: str) -> None:
    _, stale = renew((ROOT / document).read_text(encoding="utf-8"))
    assert not stale, f"{document} differs in {stale}; run python -m benchmarks.readme"


def test_all_tables_and_figures_are_used_and_every_marker_is_closed() -> None:
    found = [(kind, name) for _, kind, name, _, _ in MARKED.findall(BOTH)]
    wanted = [*(("table", name) for name in TABLES), *(("figure", name) for name in FIGURES)]
    assert sorted(found) == sorted(wanted)
    assert len(found) == len(re.findall("<!-- (?:table|figure):", BOTH)) == len(re.findall("<!-- /", BOTH))


def test_every_file_that_a_table_names_is_there() -> None:
    named = re.findall(r"^`([\w/.-]+\.json)`", BOTH, re.MULTILINE)
    assert len(named) > 10
    assert all((RESULTS / path).is_file() for path in named)


@pytest.mark.parametrize(
    ("before", "after"), [("44.5 ", "44.6 "), ("1.49<", "1.59<"), ("-graph.json`", "-grape.json`")]
)
def test_a_change_of_a_figure_is_found(before: str, after: str) -> None:
    changed = TEXT.replace(before, after)
    assert changed != TEXT
    renewed, stale = renew(changed)
    assert renewed == TEXT and stale


def test_a_change_of_a_result_file_is_found(tmp_path: Path) -> None:
    for path in RESULTS.glob("*/*.json"):
        copy = tmp_path / path.relative_to(RESULTS)
        copy.parent.mkdir(exist_ok=True)
        copy.write_bytes(path.read_bytes())
    assert renew(TEXT, tmp_path)[1] == []
    newest, result = Results().newest_path("training-steps-lite0")
    result["rows"][0]["ours_over_this_speed"] = 9.99
    (tmp_path / newest).write_text(json.dumps(result))
    assert renew(TEXT, tmp_path)[1] == ["figure step-speed"]


def write_result(folder: Path, date: str, vnni: bool, load: float = 0.0) -> None:
    row = {"way": "ours", "median_ms": 10.0 + vnni}
    latency = {"rows": [row], "times_as_fast": {}, "times_as_fast_reduced": {"ours": 1.5}}
    machine = {"processor": "Chip", "cores": 1, "vnni": vnni}
    model = {"model": "tf_efficientdet_d0", "image_size": [512, 512], "latency": latency}
    head = {"name": "run", "measured_at": date, "machine": machine, "load": {"others": load}}
    path = folder / "chip" / f"{date}-run-{vnni}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({**head, "command": "python -m benchmarks.run", "models": [model]}))


def test_the_newest_file_of_the_right_processor_that_was_not_contended_is_taken_and_named(tmp_path: Path) -> None:
    for date, vnni in (("2026-01-01", False), ("2026-01-02", False), ("2026-01-03", True)):
        write_result(tmp_path, date, vnni, load=0.05)
    write_result(tmp_path, "2026-01-04", False, load=0.5)
    drawn = draw("table", "ways-avx2", tmp_path)
    assert "10.0 ms" in drawn and "1.50" in drawn and "chip/2026-01-02-run-False.json" in drawn
    assert "1 core of Chip without VNNI, of which other processes took 5 %, by `python -m benchmarks.run`" in drawn
    assert "11.0 ms" in draw("table", "ways-vnni", tmp_path)


def test_a_missing_file_and_an_unknown_name_are_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no result file run or runner of a processor with VNNI"):
        draw("table", "ways-vnni", tmp_path)
    with pytest.raises(InputError, match="no table speeds"):
        renew("<!-- table: speeds --><!-- /table -->")


def test_check_writes_nothing_and_names_what_differs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stale = TEXT.replace("1.49<", "1.59<")
    monkeypatch.setattr(readme, "ROOT", tmp_path)
    monkeypatch.setattr(readme, "DOCUMENTS", ("numbers.md",))
    (tmp_path / "numbers.md").write_text(stale)
    assert main(["--check"]) == 2
    assert "figure step-speed" in capsys.readouterr().err
    assert (tmp_path / "numbers.md").read_text() == stale
    assert main([]) == 0
    assert (tmp_path / "numbers.md").read_text() == TEXT
    assert main(["--check"]) == 0
