"""The count of kills: it survives a bundle that is installed rightly, and notices one that leaves a moment without a version."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

import pytest

from benchmarks.deploy_kills import Place, Trial, main, open_place
from edge_effdet.device.manifest import read_bundle
from tests.bundles import template as template
from tests.bundles import write_bundle


@pytest.fixture
def bundles(template, tmp_path):
    return [write_bundle(template, tmp_path / release, release=release) for release in ("1.0", "1.1")]


@pytest.mark.slow
def test_every_kill_is_survived(bundles, capsys):
    flags = ["--bundle", str(bundles[0]), "--update", str(bundles[1]), "--python", sys.executable, "--kills", "3"]
    assert main([*flags, "--no-save", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["kills"], result["without_a_working_version"], result["next_run_failed"]) == (3, 0, 0)
    assert sum(result["steps"].values()) == sum(result["operations"].values()) == 3


def test_a_moment_without_a_version_is_noticed(template, bundles, tmp_path):
    module = "edge_effdet/device/store.py"
    text = (Path(__file__).parents[3] / module).read_text()
    switch = "            os.replace(temporary, self.folder / CURRENT)\n"
    assert text.count(switch) == 1
    slow = "            (self.folder / CURRENT).unlink(missing_ok=True)\n            __import__('time').sleep(60)\n"
    update = write_bundle(template, tmp_path / "slow", {module: text.replace(switch, slow + switch)}, release="2.0")
    first, second = read_bundle(bundles[0]), read_bundle(update)
    with open_place(None, None, sys.executable, [first, second]) as place:
        trial = Trial(place, first, second, 1)
        assert trial.finish("install") == trial.verify() == ""
        process = place.start(*trial.commands["update"])
        until = time.monotonic() + 60
        while trial.has_current and time.monotonic() < until:
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        assert "no version is installed" in trial.verify()


def test_two_releases_of_one_name_are_needed(bundles, capsys):
    flags = ["--python", sys.executable, "--bundle", str(bundles[0]), "--update", str(bundles[0])]
    assert main(flags) == 2
    assert "is no update of" in capsys.readouterr().err


def test_commands_in_another_root_name_paths_as_it_sees_them(tmp_path, template):
    (tmp_path / "var" / "tmp").mkdir(parents=True)
    with open_place(tmp_path, None, "python3", [read_bundle(template)]) as place:
        assert isinstance(place, Place) and place.launcher[-2:] == ("/usr/sbin/chroot", str(tmp_path))
        assert place.work == Path("/") / place.outside.relative_to(tmp_path)
        assert (place.outside / f"bundle {read_bundle(template).id}" / "edge-effdet").is_file()
    assert list((tmp_path / "var" / "tmp").iterdir()) == []
