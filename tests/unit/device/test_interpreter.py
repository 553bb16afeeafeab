"""The Python that makes the virtual environment, found on this machine and in a copy of another one's files."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from edge_effdet.device.interpreter import THIS, find_python
from tests.kernel_trees import write


def test_the_python_that_runs_this_tells_the_same_when_it_is_asked():
    own, asked = find_python(THIS), find_python(THIS, sys.executable)
    assert own is not None and own == asked
    assert own.version == f"{sys.version_info.major}.{sys.version_info.minor}"
    assert own.has_venv, "the module venv belongs to Python, and only Debian keeps ensurepip apart"
    assert own.release == ".".join(map(str, sys.version_info[:3]))
    bundled = sorted((own.library / "ensurepip" / "_bundled").glob("pip-*.whl"))
    assert not bundled or own.pip_wheel == str(bundled[-1])
    # Of an environment it is the Python that made it.
    assert not Path(own.executable).is_symlink() and own.library.is_dir()


@pytest.mark.parametrize("script", [None, "exit 1", "echo no JSON", "echo '[1]'"])
def test_what_is_no_python_is_none(tmp_path: Path, script: str | None):
    program = tmp_path / "python"
    if script is not None:
        write(tmp_path, {"python": f"#!/bin/sh\n{script}"})
        program.chmod(0o755)
    assert find_python(THIS, str(program)) is None


@pytest.mark.parametrize(
    ("link", "version"), [("python3.10", "3.10"), ("/usr/bin/python3.12", "3.12"), ("python2", None), (None, None)]
)
def test_the_python_of_another_machine(tmp_path: Path, link: str | None, version: str | None):
    write(tmp_path, {"usr/bin/.keep": ""})
    if link is not None:
        (tmp_path / "usr/bin/python3").symlink_to(link)
    found = find_python(tmp_path)
    assert (found and found.version) == version
    if found is not None:
        assert found.is_systems and not found.has_venv and found.pip_wheel is None
        write(
            tmp_path,
            {
                f"usr/lib/python{version}/venv/__init__.py": "",
                f"usr/lib/python{version}/ensurepip/_bundled/pip-24.0.whl": "",
            },
        )
        found = find_python(tmp_path)
        assert found is not None and found.has_venv and (found.pip_wheel or "").endswith("pip-24.0.whl")
