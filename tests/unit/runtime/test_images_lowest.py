"""The tests of decoding again, with the lowest Pillow that ``pyproject.toml`` allows; the environment has the newest.

Pillow 11.0 changed what size a TIFF has before it is decoded, so one version alone proves little.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]

OLDEST_FOR_PYTHON = {(3, 13): "10.4.0"}
"""Where the lowest version that is allowed has no wheel for a Python, the oldest one that has."""


def lowest_pillow() -> str:
    lowest = re.search(r'"pillow>=([\d.]+)"', (ROOT / "pyproject.toml").read_text())
    assert lowest is not None
    return OLDEST_FOR_PYTHON.get(sys.version_info[:2], lowest[1])


def test_decoding_holds_with_the_lowest_pillow(tmp_path: Path):
    version = lowest_pillow()
    wheel = f"pillow=={version}"
    folder = tmp_path / "site"
    installing = shlex.split("-m pip install --quiet --no-deps --only-binary :all: --target")
    installed = subprocess.run([sys.executable, *installing, folder, wheel], capture_output=True, text=True)
    if installed.returncode:
        reason = f"{wheel} could not be installed: {installed.stderr.strip().splitlines()[-1]}"
        if os.environ.get("EDGE_EFFDET_REQUIRE_DATA") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    testing = shlex.split("-m pytest -q --noconftest -p no:cacheprovider tests/unit/runtime/test_images.py")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)]), "EXPECTED_PILLOW": version}
    done = subprocess.run([sys.executable, *testing], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
