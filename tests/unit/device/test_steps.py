"""Steps that were cut off are undone and repeated, those that are done are skipped, and no program outlives an installation that is killed."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from edge_effdet.device import steps
from edge_effdet.device.steps import LOG_FILE, Journal, logging_to, plan_steps, run_program, run_steps
from edge_effdet.errors import BackendUnavailable
from tests.bundles import all_files


class Work:
    """Two steps, the second of which uses what the first made; counts how often each was done."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.inputs = {"first": 1, "second": 1}
        self.counts = {"first": 0, "second": 0}
        self.cut_off = ""

    def steps(self):
        journal = Journal(self.folder / "done")
        return [
            journal.step(name, f"make {name}", {"input": self.inputs[name]}, [self.folder / name], lambda name=name: self.do(name))
            for name in ("first", "second")
        ]  # fmt: skip

    def do(self, name: str) -> str:
        self.counts[name] += 1
        # Nothing of an earlier attempt is there.
        (self.folder / name).mkdir()
        (self.folder / name / "half").touch()
        if self.cut_off == name:
            raise KeyboardInterrupt
        (self.folder / name / "whole").touch()
        return "made"


@pytest.fixture
def work(tmp_path: Path) -> Work:
    return Work(tmp_path)


def test_what_is_done_is_skipped(work):
    assert run_steps(work.steps()) == (["first", "second"], [])
    assert run_steps(work.steps()) == ([], ["first", "second"])
    assert work.counts == {"first": 1, "second": 1}


def test_a_step_that_was_cut_off_is_undone_and_repeated(work):
    work.cut_off = "second"
    with pytest.raises(KeyboardInterrupt):
        run_steps(work.steps())
    assert (work.folder / "second" / "half").exists()
    work.cut_off = ""
    assert run_steps(work.steps()) == (["second"], ["first"])
    assert work.counts == {"first": 1, "second": 2}


def test_a_step_of_other_inputs_is_repeated_and_with_it_what_used_it(work):
    run_steps(work.steps())
    work.inputs["first"] = 2
    assert run_steps(work.steps()) == (["first", "second"], [])
    work.inputs["second"] = 2
    assert run_steps(work.steps()) == (["second"], ["first"])


def test_a_later_step_is_not_taken_for_done_when_its_earlier_one_was_cut_off(work):
    run_steps(work.steps())
    work.inputs["first"], work.cut_off = 2, "first"
    with pytest.raises(KeyboardInterrupt):
        run_steps(work.steps())
    work.cut_off = ""
    assert run_steps(work.steps()) == (["first", "second"], [])


@pytest.mark.parametrize("damage", ["output", "mark"])
def test_a_step_whose_output_or_mark_is_gone_is_repeated(work, damage):
    run_steps(work.steps())
    if damage == "output":
        (work.folder / "second" / "half").unlink()
        (work.folder / "second" / "whole").unlink()
        (work.folder / "second").rmdir()
    else:
        (work.folder / "done" / "second.json").write_text('{"inp')
    assert run_steps(work.steps()) == (["second"], ["first"])


def test_a_plan_says_what_would_be_done_and_changes_nothing(work):
    assert plan_steps(work.steps()) == ["first: make first", "second: make second"]
    run_steps(work.steps())
    before = all_files(work.folder)
    assert plan_steps(work.steps()) == ["first: done already", "second: done already"]
    work.inputs["first"] = 2
    assert plan_steps(work.steps()) == ["first: make first", "second: make second"]
    assert all_files(work.folder) == before


# Programs and the log


def test_what_a_program_prints_goes_into_the_log_and_not_to_the_terminal(tmp_path, caplog):
    code = "import sys; print('from the program'); print('trouble', file=sys.stderr); sys.exit(3)"
    with logging_to(tmp_path) as path:
        logging.getLogger("edge_effdet.device").info("a step")
        done = run_program([sys.executable, "-c", code])
    assert (done.code, done.answer, sorted(done.lines)) == (3, "", ["from the program", "trouble"])
    text = path.read_text()
    assert "INFO a step\n" in text and "INFO trouble\n" in text and f"$ {sys.executable}" in text
    assert "a step" in caplog.text and "trouble" not in caplog.text


def test_an_answer_is_kept_out_of_the_log_however_long_it_is(tmp_path):
    code = "import sys; print('x' * 300000); print('a warning', file=sys.stderr)"
    with logging_to(tmp_path) as path:
        done = run_program([sys.executable, "-c", code], answers=True)
    assert (done.code, len(done.answer), done.lines) == (0, 300001, ("a warning",))
    assert "xxx" not in path.read_text()


def test_a_program_that_is_not_there_is_told(tmp_path):
    with pytest.raises(BackendUnavailable, match="/nowhere/python cannot be run"):
        run_program(["/nowhere/python"])


def test_an_interruption_ends_the_program(monkeypatch):
    pids: list[int] = []

    def interrupt(text: str, line: str) -> None:
        if text == "%s":
            pids.append(int(line))
            raise KeyboardInterrupt

    monkeypatch.setattr(steps.output_logger, "info", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run_program([sys.executable, "-c", "import os, time; print(os.getpid(), flush=True); time.sleep(60)"])
    assert has_ended(pids[0])


def test_a_program_does_not_outlive_an_installation_that_is_killed(tmp_path):
    code = "import os, pathlib, time; pathlib.Path('pid').write_text(str(os.getpid())); time.sleep(60)"
    script = (
        f"import sys; from edge_effdet.device.steps import run_program; run_program([sys.executable, '-c', {code!r}])"
    )
    with subprocess.Popen([sys.executable, "-c", script], cwd=tmp_path) as installer:
        wait_for(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text() != "")
        installer.kill()
    pid = int((tmp_path / "pid").read_text())
    wait_for(lambda: has_ended(pid))


def wait_for(what) -> None:
    until = time.monotonic() + 30
    while not what():
        assert time.monotonic() < until
        time.sleep(0.05)


def has_ended(pid: int) -> bool:
    try:
        return Path("/proc", str(pid), "stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def test_the_log_is_set_aside_before_it_fills_the_disk(tmp_path):
    with logging_to(tmp_path):
        for _ in range(60):
            logging.getLogger("edge_effdet.device.output").info("%s", "x" * 100_000)
    names = sorted(each.name for each in tmp_path.iterdir())
    assert names == [LOG_FILE, *(f"{LOG_FILE}.{number}" for number in (1, 2, 3))]
    assert sum(each.stat().st_size for each in tmp_path.iterdir()) < 5 << 20


def test_names_that_are_not_text_can_be_logged(tmp_path):
    with logging_to(tmp_path) as path:
        run_program([sys.executable, "-c", "import sys; sys.stdout.buffer.write(b'\\xff\\n')", os.fsdecode(b"\xb2")])
    assert "\\xb2" in path.read_text()
