"""The clock in 1970, two installations at once, and a user who may not write: what a device may be like."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from datetime import datetime
from pathlib import Path

import pytest

from edge_effdet.device.integrity import verify_installed
from edge_effdet.device.store import Store
from tests.bundles import write_bundle

HERE = Path(__file__).parents[2]


def command(*words: object) -> list[str]:
    return [sys.executable, "-m", "edge_effdet.device", *map(str, words)]


def release(root: Path) -> str:
    return verify_installed(Store.at(root, "cells")).version.require_record().release


def test_the_clock_stands_in_1970(template, tmp_path):
    """A Jetson without a battery for its clock starts there."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("there is no C compiler here, which makes what shifts the clock (apt install gcc)")
    library = tmp_path / "wall_clock.so"
    source = Path(__file__).with_name("wall_clock.c")
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
    root = tmp_path / "root"
    clock = {"1.0": "2026-06-01T00:00:00", "2.0": "1970-01-01T00:10:00", "3.0": "1970-01-01T00:00:30"}

    def at(moment: str) -> dict[str, str]:
        seconds = datetime.fromisoformat(f"{moment}+00:00").timestamp() - time.time()
        return {**os.environ, "LD_PRELOAD": str(library), "WALL_CLOCK_OFFSET": str(int(seconds)), "TZ": "UTC"}

    for number, moment in clock.items():
        bundle = write_bundle(template, tmp_path / number, release=number)
        words = command("install", bundle, "--root", root, "--service", "none")
        done = subprocess.run(words, cwd=HERE, env=at(moment), capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert release(root) == number
    assert "clock is the year 1970" in done.stderr
    assert " 1970-01-01 00:0" in "\n" + (root / "cells" / "log" / "install.log").read_text().replace("\n", "\n ")
    words = command("rollback", "--root", root)
    rolled = subprocess.run(words, cwd=HERE, env=at(clock["3.0"]), capture_output=True, text=True)
    assert rolled.returncode == 0 and release(root) == "2.0"


def test_two_installations_at_once(template, tmp_path):
    bundle, root = write_bundle(template, tmp_path / "bundle"), tmp_path / "root"
    words = command("install", bundle, "--root", root, "--service", "none")
    both = [
        subprocess.Popen(words, cwd=HERE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)
    ]
    errors = [each.communicate()[1] for each in both]
    assert sorted(each.returncode for each in both) == [0, 2]
    (told,) = [line for text in errors for line in text.splitlines() if line.startswith("error: ")]
    assert "is at work on" in told
    assert release(root) == "1.0"


def test_a_user_who_may_not_write_is_told_what_to_do(tmp_path):
    if os.geteuid() != 0:
        pytest.skip("only root can become another user")
    code = (
        "import os, sys\nfrom pathlib import Path\nfrom edge_effdet.device.store import Store\nfrom edge_effdet.errors import InputError\n"
        "os.seteuid(65534)\n"
        "try:\n    Store(Path(sys.argv[1]), 'cells').create()\nexcept InputError as error:\n    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "cells"], cwd=HERE, capture_output=True, text=True)
    assert (
        done.stdout
        == f"Writing {tmp_path / 'cells'} failed: this user may not write there; run this with sudo, or give another `root`.\n"
    )
    assert list(tmp_path.iterdir()) == []
