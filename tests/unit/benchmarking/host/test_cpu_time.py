"""Whose processor time it was, on trees of processes that start children, end, and leave orphans."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from edge_effdet.benchmarking.host.cpu_time import CpuTimes, OwnTime, read_cpu_times
from tests.kernel_trees import process, stat, write

ME = os.getpid()
FOREIGN, CHILD, GRANDCHILD, TOLD = ME + 1, ME + 2, ME + 3, ME + 4


def end(root: Path, pid: int) -> None:
    shutil.rmtree(root / f"proc/{pid}")


def test_only_the_processors_that_are_used_count(tmp_path: Path):
    write(tmp_path, {"proc/stat": stat((10, 5, 100, 0), (20, 0, 90, 7), (999, 999, 999, 999))})
    assert read_cpu_times(tmp_path / "proc", [0, 1]) == CpuTimes({0: 15, 1: 20}, 115 + 117, 7)
    assert read_cpu_times(tmp_path / "proc", [9]) is None
    assert read_cpu_times(tmp_path / "nothing", [0]) is None


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """This process with a child and a grandchild, and a foreign one, all with a past."""
    files = {
        **process(ME, 1, 100, own=1000),
        **process(FOREIGN, 1, 110, own=5000),
        **process(CHILD, ME, 120, own=300),
        **process(GRANDCHILD, CHILD, 130, own=70, name="a (strange) name) S 1 2"),
    }
    return write(tmp_path, files)


def test_a_system_that_lists_no_processes(tmp_path: Path):
    assert OwnTime(tmp_path / "nothing").read() == 0


def test_children_count_and_others_do_not(tree: Path):
    own = OwnTime(tree / "proc")
    assert own.read() == 0, "the time before the first reading does not count"
    write(tree, {**process(ME, 1, 100, own=1010), **process(GRANDCHILD, CHILD, 130, own=90)})
    write(tree, process(FOREIGN, 1, 110, own=9000))
    assert own.read() == 10 + 20
    assert own.read() == 30


def test_a_new_child_counts_from_its_start(tree: Path):
    own = OwnTime(tree / "proc")
    own.read()
    # Its parent is new as well.
    write(
        tree,
        {
            **process(TOLD, ME, 200, own=40),
            **process(TOLD + 1, TOLD, 201, own=2),
            **process(TOLD + 2, FOREIGN, 202, own=9),
        },
    )
    assert own.read() == 42


def test_a_child_that_ends_hands_its_time_to_its_parent(tree: Path):
    own = OwnTime(tree / "proc")
    own.read()
    # The grandchild worked 5 more ticks and the child 1 before they ended; this process waited for the child.
    end(tree, GRANDCHILD)
    end(tree, CHILD)
    write(tree, process(ME, 1, 100, own=1000, reaped=(70 + 5) + (300 + 1)))
    assert own.read() == 6


def test_a_child_that_lived_between_two_readings_counts(tree: Path):
    own = OwnTime(tree / "proc")
    own.read()
    write(tree, process(ME, 1, 100, own=1000, reaped=33))
    assert own.read() == 33


def test_a_child_that_ends_unwaited_takes_nothing_back(tree: Path):
    own = OwnTime(tree / "proc")
    own.read()
    write(tree, process(CHILD, ME, 120, own=350))
    assert own.read() == 50
    end(tree, CHILD)
    write(tree, {**process(GRANDCHILD, 1, 130, own=71), **process(ME, 1, 100, own=1001)})
    # The orphan stays ours.
    assert own.read() == 52


def test_a_told_process_counts_from_then_on_with_the_children_that_it_has(tree: Path):
    told: list[int] = []
    own = OwnTime(tree / "proc", lambda: told)
    write(tree, process(TOLD, FOREIGN, 115, own=8))
    own.read()
    told.append(FOREIGN)
    assert own.read() == 0
    write(tree, {**process(FOREIGN, 1, 110, own=5001), **process(TOLD, FOREIGN, 115, own=10)})
    assert own.read() == 3


def test_a_told_process_may_end(tree: Path):
    own = OwnTime(tree / "proc", lambda: [FOREIGN])
    own.read()
    end(tree, FOREIGN)
    assert own.read() == 0
    write(tree, process(ME, 1, 100, own=1004))
    assert own.read() == 4


def test_a_number_that_is_used_again_is_another_process(tree: Path):
    own = OwnTime(tree / "proc")
    own.read()
    # The child ended, and a foreign process got its number.
    write(tree, process(CHILD, FOREIGN, 500, own=2))
    write(tree, process(ME, 1, 100, own=1000, reaped=300))
    assert own.read() == 0
    write(tree, process(CHILD, FOREIGN, 500, own=900))
    assert own.read() == 0


def test_the_time_of_a_real_child_is_ours():
    own = OwnTime(Path("/proc"))
    own.read()
    busy = "import time\nuntil = time.process_time() + 0.3\nwhile time.process_time() < until: pass"
    child = subprocess.Popen([sys.executable, "-c", busy])
    running = []
    while child.poll() is None:
        time.sleep(0.05)
        running.append(own.read())
    ticks = own.read() / os.sysconf("SC_CLK_TCK")
    # It was seen while it ran, and its end lost none of its time.
    assert running[-1] > 0 and ticks >= 0.3 - 0.02
    assert sorted(running) == running
