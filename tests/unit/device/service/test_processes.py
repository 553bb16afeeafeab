"""A process is told from a later one with its number, and an ended one is gone."""

from __future__ import annotations

import os
import subprocess
import sys
import time

from edge_effdet.device.service.processes import process_identity, seconds_since_boot


def test_a_process_has_one_identity_until_it_ends():
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        known = process_identity(child.pid)
        assert known is not None
        assert known == process_identity(child.pid)
        assert known != process_identity(os.getpid())
        assert child.stdin is not None
        child.stdin.close()
        # Nobody has asked how it ended, so the number is still taken, by a process that does nothing any more.
        until = time.monotonic() + 20
        while process_identity(child.pid) is not None:
            assert time.monotonic() < until
            time.sleep(0.01)
        child.wait()
    assert process_identity(child.pid) is None


def test_a_name_with_brackets_and_spaces_hides_nothing(tmp_path):
    folder = tmp_path / "7"
    folder.mkdir()
    (tmp_path / "sys/kernel/random").mkdir(parents=True)
    (tmp_path / "sys/kernel/random/boot_id").write_text("first\n")
    fields = ["S", *map(str, range(4, 53))]
    (folder / "stat").write_text(f"7 (a) b) Z c)) {' '.join(fields)}\n")
    assert process_identity(7, tmp_path) == "first:22"
    (tmp_path / "sys/kernel/random/boot_id").write_text("second\n")
    assert process_identity(7, tmp_path) == "second:22"
    (folder / "stat").write_text("7 (a) Z 1 2")
    assert process_identity(7, tmp_path) is None


def test_the_clock_goes_on():
    before = seconds_since_boot()
    assert before > 0
    assert seconds_since_boot() >= before
