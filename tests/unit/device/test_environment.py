"""The environment of a version, made by the real venv and pip from the wheels of a small bundle, and what is said when that fails."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest

from edge_effdet.artifacts import file_sha256
from edge_effdet.device import environment
from edge_effdet.device.environment import (
    HostPython,
    build_environment,
    check_environment,
    explain_tensorrt,
    find_pip,
    look_at_python,
    make_environment,
    try_environment,
)
from edge_effdet.device.manifest import read_bundle
from edge_effdet.device.steps import Finished
from edge_effdet.errors import BackendUnavailable, BundleError
from tests.bundles import write_bundle
from tests.deploying import find_python
from tests.once import make_once


@pytest.fixture(scope="module")
def made(template, tmp_path_factory):
    """An environment of the small bundle, in a folder whose name has spaces and letters beyond ASCII."""

    def make(folder: Path) -> None:
        place = folder / "mit Leerzeichen é"
        place.mkdir()
        make_environment(read_bundle(template), place / "venv", look_at_python(None), system_packages=False)

    return make_once(tmp_path_factory, "environment", make) / "mit Leerzeichen é" / "venv"


@pytest.fixture
def copy(made, tmp_path):
    """A copy of it that a test may damage."""
    return Path(shutil.copytree(made, tmp_path / "venv", symlinks=True))


def test_the_detector_runs_in_it_and_nothing_of_the_host_side_is_there(made):
    code = (
        "import edge_effdet.runtime.detector, sys; print(edge_effdet.__file__); import importlib.util;"
        "print([name for name in ('train', 'graph', 'quant', 'models') if importlib.util.find_spec(f'edge_effdet.{name}')])"
    )
    done = subprocess.run([made / "bin" / "python", "-I", "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    where, host = done.stdout.splitlines()
    assert Path(where).is_relative_to(made) and host == "[]"


def test_pip_works_in_it(made):
    done = subprocess.run([made / "bin" / "python", "-I", "-m", "pip", "--version"], capture_output=True, text=True)
    assert done.returncode == 0 and str(made) in done.stdout


def test_settings_of_pip_on_the_device_have_no_say(template, tmp_path, monkeypatch):
    (tmp_path / "pip.conf").write_text("[global]\nindex-url = http://127.0.0.1:9/\n[install]\ntarget = /nowhere\n")
    monkeypatch.setenv("PIP_CONFIG_FILE", str(tmp_path / "pip.conf"))
    monkeypatch.setenv("PIP_TARGET", "/nowhere")
    said = make_environment(read_bundle(template), tmp_path / "venv", look_at_python(None), system_packages=False)
    assert said.startswith("onnxruntime ")


def test_every_file_is_held_against_the_wheels(template, made, copy):
    bundle = read_bundle(template)
    count = check_environment(bundle, made)
    assert count == check_environment(bundle, copy) > 50
    (site,) = (copy / "lib").glob("*/site-packages")
    changed = site / "edge_effdet" / "runtime" / "detector.py"
    changed.write_text(changed.read_text() + "\n")
    with pytest.raises(BundleError, match=r"detector\.py is not what edge_effdet-.*\.whl has"):
        check_environment(bundle, copy)
    changed.unlink()
    with pytest.raises(BundleError, match=r"detector\.py is not what"):
        check_environment(bundle, copy)


def test_an_environment_whose_python_is_gone_is_noticed(template, copy):
    (copy / "bin" / "python").unlink()
    with pytest.raises(BundleError, match="is not a whole environment"):
        check_environment(read_bundle(template), copy)


# What can go wrong


def broken(template: Path, folder: Path, requirements: str, complete: bool = True):
    """A bundle with other requirements."""
    write_bundle(template, folder)
    (folder / "requirements.txt").write_text(requirements)
    write_bundle(folder, folder.with_name("again"), complete=complete)
    return read_bundle(folder.with_name("again"))


def test_a_wheel_of_another_hash_is_refused(template, tmp_path):
    bundle = broken(template, tmp_path / "bundle", f"host-packages==1.0 --hash=sha256:{'0' * 64}\n")
    with pytest.raises(BundleError, match=r"is not the one that requirements\.txt names by its hash"):
        make_environment(bundle, tmp_path / "venv", look_at_python(None), system_packages=False)


def test_a_wheel_that_is_missing_or_for_another_python_is_told(template, tmp_path):
    bundle = broken(template, tmp_path / "bundle", f"numpy==2.2.6 --hash=sha256:{'0' * 64}\n")
    with pytest.raises(
        BundleError, match=r"do not suit this device, which has Python 3\.\d+ on \w+ \(.*numpy==2\.2\.6"
    ):
        make_environment(bundle, tmp_path / "venv", look_at_python(None), system_packages=False)


@pytest.mark.parametrize(
    ("retries", "said"),
    [("1", "pip cannot reach the package index"), ("0", "either it cannot reach the package index")],
)
def test_without_a_network_the_way_out_is_told(template, tmp_path, monkeypatch, retries, said):
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    for name in ("PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_RETRIES", retries)
    bundle = broken(template, tmp_path / "bundle", "numpy==2.2.6\n", complete=False)
    with pytest.raises(BackendUnavailable, match=rf"{said}.*make the bundle with `wheels`"):
        make_environment(bundle, tmp_path / "venv", look_at_python(None), system_packages=False)


def test_packages_that_cannot_be_imported_are_told(template, tmp_path):
    changes = {"edge_effdet/runtime/detector.py": "import a_module_that_is_missing\n"}
    bundle = read_bundle(write_bundle(template, tmp_path / "bundle", changes))
    with pytest.raises(BackendUnavailable, match="No module named 'a_module_that_is_missing'"):
        make_environment(bundle, tmp_path / "venv", look_at_python(None), system_packages=False)


def test_a_backend_that_does_not_work_is_told(made):
    with pytest.raises(BackendUnavailable, match="tensorrt does not work in the new environment"):
        try_environment(made, "tensorrt", look_at_python(None), system_packages=False)


def test_a_full_disk_is_told_as_such(template, tmp_path, monkeypatch):
    """pip's own words, as it prints them on a full disk; tests/faults fills one."""
    said = ("ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device",)
    monkeypatch.setattr(environment, "run_program", lambda *_, **__: Finished(1, "", said))
    with pytest.raises(OSError, match="No space left"):
        make_environment(read_bundle(template), tmp_path / "venv", look_at_python(None), system_packages=False)


def test_pycuda_that_cannot_be_compiled_is_explained(template):
    """The end of what pip 23.2 prints for pycuda 2025.1.2 on a machine without CUDA."""
    lines = (
        "Building wheels for collected packages: pycuda",
        "  Building wheel for pycuda (pyproject.toml): finished with status 'error'",
        "  error: subprocess-exited-with-error",
        "      src/cpp/cuda.hpp:14:10: fatal error: cuda.h: No such file or directory",
        "      error: command '/usr/bin/g++' failed with exit code 1",
        "  ERROR: Failed building wheel for pycuda",
        "ERROR: Could not build wheels for pycuda, which is required to install pyproject.toml-based projects",
    )
    told = environment._explain_pip(Finished(1, "", lines), read_bundle(template), look_at_python(None), offline=True)
    assert isinstance(told, BackendUnavailable)
    assert "CUDA's headers and nvcc in /usr/local/cuda" in str(told) and "apt install" in str(told)


# Which Python, which pip


def test_the_python_of_an_environment_leads_to_the_one_that_made_it(made):
    assert look_at_python(str(made / "bin" / "python")).executable == look_at_python(None).executable
    assert not Path(look_at_python(None).executable).is_symlink()


@pytest.mark.parametrize("python", ["/nowhere/python", "/bin/false", "/etc/passwd"])
def test_what_is_no_python_is_refused(python):
    with pytest.raises(BackendUnavailable, match="is no Python that can be run"):
        look_at_python(python)


def test_a_python_that_is_too_old_is_refused():
    old = find_python("3.9")
    if old is None:
        pytest.skip("there is no Python 3.9 here")
    with pytest.raises(BackendUnavailable, match=r"is Python 3\.9\.\d+, and 3\.10 to 3\.13 work"):
        look_at_python(str(old))


def test_pip_of_the_bundle_comes_before_that_of_the_python(template, tmp_path):
    python = look_at_python(None)
    bundle = read_bundle(template)
    assert find_pip(bundle, python) == Path(python.pip_wheel or "")
    with pytest.raises(BackendUnavailable, match=r"no ensurepip.*sudo apt install python3\.\d+-venv"):
        find_pip(bundle, replace(python, pip_wheel=None))
    shutil.copytree(template, tmp_path / "bundle")
    shutil.copyfile(python.pip_wheel or "", tmp_path / "bundle" / "wheels" / "pip-99.0-py3-none-any.whl")
    bundled = replace(bundle, path=tmp_path / "bundle")
    assert find_pip(bundled, replace(python, pip_wheel=None)).name == "pip-99.0-py3-none-any.whl"


def test_cuda_is_put_on_the_path_where_it_is(tmp_path, monkeypatch):
    monkeypatch.delenv("CUDA_ROOT", raising=False)
    monkeypatch.setenv("PATH", "/usr/bin")
    assert "CUDA_ROOT" not in build_environment(offline=False, cuda=tmp_path)
    (tmp_path / "bin").mkdir()
    found = build_environment(offline=True, cuda=tmp_path)
    assert found["CUDA_ROOT"] == str(tmp_path) and found["PATH"] == f"{tmp_path / 'bin'}:/usr/bin"
    assert found["PIP_CONFIG_FILE"] == os.devnull


@pytest.mark.parametrize(
    ("executable", "has_tensorrt", "system_packages", "said"),
    [
        ("/usr/bin/python3.10", True, False, "without --system-site-packages and does not see it"),
        (
            "/usr/bin/python3.10",
            False,
            True,
            "comes from apt and not from pip: run sudo apt install python3-libnvinfer",
        ),
        ("/home/me/python3.10", False, True, "give `python` /usr/bin/python3"),
        ("/usr/bin/python3.10", True, True, None),
    ],
)
def test_where_tensorrt_comes_from_is_explained(executable, has_tensorrt, system_packages, said):
    python = HostPython(executable, (3, 10, 12), True, None, has_tensorrt)
    told = explain_tensorrt(python, system_packages)
    assert told is None if said is None else said in (told or "")


def test_system_packages_are_seen_where_the_target_says_so(template, tmp_path):
    make_environment(read_bundle(template), tmp_path / "venv", look_at_python(None), system_packages=True)
    assert "include-system-site-packages = true" in (tmp_path / "venv" / "pyvenv.cfg").read_text()


BACKEND = """
import zipfile
def build_wheel(folder, config=None, metadata=None):
    import host_packages
    name = "compiled-1.0-py3-none-any.whl"
    with zipfile.ZipFile(f"{folder}/{name}", "w") as archive:
        archive.writestr("compiled.py", "")
        archive.writestr("compiled-1.0.dist-info/METADATA", "Metadata-Version: 2.1\\nName: compiled\\nVersion: 1.0\\n")
        archive.writestr("compiled-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n")
        archive.writestr("compiled-1.0.dist-info/RECORD", "")
    return name
"""
PROJECT = '[build-system]\nrequires = ["host-packages"]\nbuild-backend = "backend"\nbackend-path = ["."]\n'


def test_a_package_is_compiled_by_the_pip_that_was_unpacked(template, tmp_path):
    """pip starts itself once more to fetch what a package is compiled with, as for pycuda."""
    folder = write_bundle(template, tmp_path / "bundle", packages={"host_packages/__init__.py": ""})
    source = folder / "wheels" / "compiled-1.0.tar.gz"
    with tarfile.open(source, "w:gz") as tar:
        for name, text in (("pyproject.toml", PROJECT), ("backend.py", BACKEND)):
            member = tarfile.TarInfo(f"compiled-1.0/{name}")
            member.size = len(text)
            tar.addfile(member, io.BytesIO(text.encode()))
    requirements = folder / "requirements.txt"
    requirements.write_text(requirements.read_text() + f"compiled==1.0 --hash=sha256:{file_sha256(source)}\n")
    bundle = read_bundle(write_bundle(folder, tmp_path / "again"))
    make_environment(bundle, tmp_path / "venv", look_at_python(None), system_packages=False)
    assert list((tmp_path / "venv" / "lib").glob("*/site-packages/compiled.py"))


def test_the_tests_run_on_a_python_that_works():
    assert look_at_python(sys.executable).has_venv
