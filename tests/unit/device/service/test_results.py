"""The log of results: bounded, whole lines only, and a disk that is full loses lines and nothing else."""

from __future__ import annotations

import json
import resource
import subprocess
import sys

import pytest

from edge_effdet.device.service import results
from edge_effdet.device.service.results import ResultsLog


def read_all(folder):
    return [json.loads(line) for file in sorted(folder.glob("*.jsonl")) for line in file.read_bytes().splitlines()]


def fill(log, numbers, size=1000):
    for number in numbers:
        log.add({"number": number, "filler": "x" * size})
        if number % 50 == 49:
            log.write()


def test_the_newest_files_are_kept_within_the_bound(tmp_path):
    log = ResultsLog(tmp_path / "results", mib=1, keep=3)
    fill(log, range(5000))
    log.close()
    files = sorted((tmp_path / "results").iterdir())
    assert [each.name for each in files] == [f"results-{number:08}.jsonl" for number in (3, 4, 5)]
    assert all(each.stat().st_size <= 1 << 20 for each in files)
    # A full file is full: the next line would not have fitted.
    assert all(each.stat().st_size > (1 << 20) - 1100 for each in files[:-1])
    found = [row["number"] for row in read_all(tmp_path / "results")]
    assert found == list(range(5000 - len(found), 5000))
    assert (log.lost, log.problem) == (0, "")


@pytest.mark.parametrize("keep", [1, 2])
def test_few_files_are_kept_too(tmp_path, keep):
    log = ResultsLog(tmp_path, mib=1, keep=keep)
    fill(log, range(3000))
    log.close()
    assert len(list(tmp_path.iterdir())) == keep
    assert read_all(tmp_path)[-1]["number"] == 2999


def test_with_none_to_keep_nothing_is_written(tmp_path):
    log = ResultsLog(tmp_path / "results", mib=1, keep=0)
    fill(log, range(100))
    log.close()
    assert not (tmp_path / "results").exists()
    assert log.lost == 0


def test_a_line_longer_than_a_file_has_one_of_its_own(tmp_path):
    log = ResultsLog(tmp_path, mib=1, keep=4)
    fill(log, [0])
    fill(log, [1], size=2 << 20)
    fill(log, [2])
    log.close()
    assert [len(file.read_bytes().splitlines()) for file in sorted(tmp_path.iterdir())] == [1, 1, 1]
    assert [row["number"] for row in read_all(tmp_path)] == [0, 1, 2]


def test_a_later_process_goes_on_behind_the_last_whole_line(tmp_path):
    log = ResultsLog(tmp_path, mib=1, keep=4)
    fill(log, range(3))
    log.close()
    (file,) = tmp_path.iterdir()
    with file.open("ab") as stream:
        stream.write(b'{"number": 3, "filler": "' + b"x" * 200_000)
    log = ResultsLog(tmp_path, mib=1, keep=4)
    fill(log, [4])
    log.close()
    assert [row["number"] for row in read_all(tmp_path)] == [0, 1, 2, 4]
    assert list(tmp_path.iterdir()) == [file]


def test_a_file_that_cannot_be_opened_is_passed_over(tmp_path):
    # A folder stands for the file of another user, which root could open.
    (tmp_path / "results-00000003.jsonl").mkdir()
    log = ResultsLog(tmp_path, mib=1, keep=2)
    fill(log, range(3000))
    log.close()
    assert (log.lost, log.problem) == (0, "")
    assert max(each.name for each in tmp_path.iterdir() if each.is_file()) == "results-00000006.jsonl"


def test_what_no_disk_takes_is_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "MOST_PENDING", 10_000)
    log = ResultsLog(tmp_path, mib=1, keep=1)
    for number in range(20):
        log.add({"number": number, "filler": "x" * 1000})
    assert log.lost == 11
    log.close()
    assert [row["number"] for row in read_all(tmp_path)] == list(range(9))


def test_a_folder_that_is_gone_loses_lines_until_it_is_back(tmp_path):
    blocked = tmp_path / "results"
    blocked.write_text("no folder")
    log = ResultsLog(blocked, mib=1, keep=2)
    fill(log, [0])
    log.write()
    assert log.lost == 1
    assert log.problem
    # Nothing to write is no sign that it would work.
    log.write()
    assert log.problem
    blocked.unlink()
    fill(log, [1])
    log.write()
    assert (log.lost, log.problem) == (1, "")
    log.close()
    assert [row["number"] for row in read_all(blocked)] == [1]


def test_a_write_that_breaks_off_leaves_whole_lines():
    """With a limit on the size of files the kernel takes a part of a write and refuses the rest, as a disk does that gets full."""
    code = f"""
import json, resource, sys, tempfile
from pathlib import Path
from edge_effdet.device.service.results import ResultsLog
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, {resource.RLIM_INFINITY}))
with tempfile.TemporaryDirectory() as folder:
    log = ResultsLog(Path(folder), mib=1, keep=2)
    for number in range(6):
        for part in range(4):
            log.add({{"number": 4 * number + part, "filler": "x" * 1000}})
        log.write()
    log.close()
    (file,) = Path(folder).iterdir()
    print(json.dumps([log.lost, log.problem, [json.loads(line)["number"] for line in file.read_text().splitlines()]]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lost, problem, numbers = json.loads(done.stdout)
    assert numbers == list(range(8))
    assert lost == 24 - 8
    assert problem == "File too large"
