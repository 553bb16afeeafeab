"""The environment of a version, made by the real venv and pip from the wheels of a small bundle, and what is said when that fails."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest

from edge_effdet.artifacts import file_sha256
from edge_effdet.device import environment
from edge_effdet.device.environment import (
    build_environment,
    check_environment,
    explain_tensorrt,
    find_pip,
    make_environment,
    read_pip_settings,
    try_environment,
)
from edge_effdet.device.interpreter import THIS, DevicePython, find_python
from edge_effdet.device.manifest import read_bundle
from edge_effdet.device.steps import Finished
from edge_effdet.errors import BackendUnavailable, BundleError
from tests.bundles import PACKAGES, rewrite_wheel, write_bundle
from tests.deploying import make_wheel
from tests.once import make_once


def own_python() -> DevicePython:
    """The Python that runs the tests."""
    found = find_python(THIS)
    assert found is not None
    return found


@pytest.fixture(scope="module")
def made(template, tmp_path_factory):
    """An environment of the small bundle, in a folder whose name has spaces and letters beyond ASCII."""

    def make(folder: Path) -> None:
        place = folder / "mit Leerzeichen é"
        place.mkdir()
        make_environment(read_bundle(template), place / "venv", own_python(), system_packages=False)

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
    said = make_environment(read_bundle(template), tmp_path / "venv", own_python(), system_packages=False)
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
        make_environment(bundle, tmp_path / "venv", own_python(), system_packages=False)


def test_a_wheel_that_is_missing_or_for_another_python_is_told(template, tmp_path):
    bundle = broken(template, tmp_path / "bundle", f"numpy==2.2.6 --hash=sha256:{'0' * 64}\n")
    with pytest.raises(
        BundleError, match=r"do not suit this device, which has Python 3\.\d+ on \w+ \(.*numpy==2\.2\.6"
    ):
        make_environment(bundle, tmp_path / "venv", own_python(), system_packages=False)


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
        make_environment(bundle, tmp_path / "venv", own_python(), system_packages=False)


def test_packages_that_cannot_be_imported_are_told(template, tmp_path):
    changes = {"edge_effdet/runtime/detector.py": "import a_module_that_is_missing\n"}
    bundle = read_bundle(write_bundle(template, tmp_path / "bundle", changes))
    with pytest.raises(BackendUnavailable, match="No module named 'a_module_that_is_missing'"):
        make_environment(bundle, tmp_path / "venv", own_python(), system_packages=False)


def test_a_backend_that_does_not_work_is_told(made):
    with pytest.raises(BackendUnavailable, match="tensorrt does not work in the new environment"):
        try_environment(made, "tensorrt", own_python(), system_packages=False)


def test_a_full_disk_is_told_as_such(template, tmp_path, monkeypatch):
    """pip's own words, as it prints them on a full disk; tests/faults fills one."""
    said = ("ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device",)
    monkeypatch.setattr(environment, "run_program", lambda *_, **__: Finished(1, "", said))
    with pytest.raises(OSError, match="No space left"):
        make_environment(read_bundle(template), tmp_path / "venv", own_python(), system_packages=False)


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
    told = environment._explain_pip(Finished(1, "", lines), read_bundle(template), own_python(), offline=True)
    assert isinstance(told, BackendUnavailable)
    assert "CUDA's headers and nvcc in /usr/local/cuda" in str(told) and "apt install" in str(told)


# Which Python, which pip


def test_the_python_of_an_environment_leads_to_the_one_that_made_it(made):
    inside = find_python(THIS, str(made / "bin" / "python"))
    assert inside is not None and inside.executable == own_python().executable
    assert not Path(own_python().executable).is_symlink()


def test_pip_of_the_bundle_comes_before_that_of_the_python(template, tmp_path):
    python = own_python()
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
    assert "CUDA_ROOT" not in build_environment({}, cuda=tmp_path)
    (tmp_path / "bin").mkdir()
    found = build_environment({}, cuda=tmp_path)
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
    python = replace(own_python(), executable=executable, has_tensorrt=has_tensorrt)
    told = explain_tensorrt(python, system_packages)
    assert told is None if said is None else said in (told or "")


def test_system_packages_are_seen_where_the_target_says_so(template, tmp_path):
    make_environment(read_bundle(template), tmp_path / "venv", own_python(), system_packages=True)
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
    make_environment(bundle, tmp_path / "venv", own_python(), system_packages=False)
    assert list((tmp_path / "venv" / "lib").glob("*/site-packages/compiled.py"))


@pytest.fixture
def no_settings(monkeypatch):
    """No settings of pip in the environment; a test that wants some sets them."""
    for name in [each for each in os.environ if each.startswith("PIP_")]:
        monkeypatch.delenv(name)


@pytest.fixture
def mirror(template, tmp_path, no_settings):
    """A bundle whose other package is not in it but in a folder, as a company's mirror has it, with its hash in the bundle."""
    write_bundle(template, tmp_path / "with")
    folder = tmp_path / "mirror"
    folder.mkdir()
    (tmp_path / "with" / "wheels" / PACKAGES).rename(folder / PACKAGES)
    return read_bundle(write_bundle(tmp_path / "with", tmp_path / "bundle", complete=False)), folder


def write_settings(tmp_path: Path, mirror: Path, more: str = "") -> str:
    path = tmp_path / "pip.conf"
    path.write_text(f"[global]\nno-index = true\nfind-links = {mirror}\nretries = 7\n[install]\nretries = 0\n{more}")
    return str(path)


def test_a_mirror_of_this_device_is_used_and_nothing_else_of_its_settings(mirror, tmp_path, monkeypatch):
    bundle, folder = mirror
    make_wheel(folder, "smuggled", "1.0")
    (tmp_path / "more.txt").write_text("smuggled\n")
    monkeypatch.setenv(
        "PIP_CONFIG_FILE",
        write_settings(tmp_path, folder, f"requirement = {tmp_path / 'more.txt'}\ntarget = /nowhere\n"),
    )
    monkeypatch.setenv("PIP_PREFIX", "/nowhere")
    monkeypatch.setenv("PIP_CONSTRAINT", "/nowhere")
    monkeypatch.setenv("PYTHONPATH", "/nowhere")
    said = make_environment(bundle, tmp_path / "venv", own_python(), system_packages=False)
    assert said.startswith("onnxruntime ")
    (site,) = (tmp_path / "venv" / "lib").glob("*/site-packages")
    assert (site / "host_packages.pth").is_file() and not (site / "smuggled.py").exists()


def test_a_mirror_that_has_another_package_is_refused_by_the_hash(mirror, tmp_path, monkeypatch):
    bundle, folder = mirror
    rewrite_wheel(folder / PACKAGES, {"host_packages_too.pth": "import os\n"})
    monkeypatch.setenv("PIP_CONFIG_FILE", write_settings(tmp_path, folder))
    with pytest.raises(BundleError, match="by its hash"):
        make_environment(bundle, tmp_path / "venv", own_python(), system_packages=False)


def test_without_hashes_it_is_said_who_decides_what_is_installed(mirror, tmp_path, monkeypatch, caplog):
    bundle, folder = mirror
    (bundle.path / "requirements.txt").write_text("host-packages\n")
    bundle = read_bundle(write_bundle(bundle.path, tmp_path / "again"))
    monkeypatch.setenv("PIP_CONFIG_FILE", write_settings(tmp_path, folder))
    make_environment(bundle, tmp_path / "venv", own_python(), system_packages=False)
    assert "what lies there is installed" in caplog.text and "PIP_FIND_LINKS" in caplog.text


def test_settings_of_pip_are_read_as_pip_ranks_them(made, tmp_path, no_settings, monkeypatch):
    monkeypatch.setenv("PIP_CONFIG_FILE", write_settings(tmp_path, tmp_path, "trusted-host = it's\n"))
    monkeypatch.setenv("PIP_PROXY", "http://proxy:1")
    monkeypatch.setenv("PIP_TARGET", "/nowhere")
    # The system may have a file of settings too, which the other one overrides.
    wanted = {
        "PIP_FIND_LINKS": str(tmp_path),
        "PIP_NO_INDEX": "true",
        "PIP_PROXY": "http://proxy:1",
        "PIP_RETRIES": "0",
    }
    wanted["PIP_TRUSTED_HOST"] = "it's"
    found = read_pip_settings(made)
    assert found | wanted == found and not {"PIP_TARGET", "PIP_CONFIG_FILE"} & set(found)
    (tmp_path / "pip.conf").write_text("no settings")
    assert read_pip_settings(made) == {}


def test_a_package_whose_metadata_was_removed_is_noticed(template, copy):
    """Without it nothing told that its files were to be compared."""
    bundle = read_bundle(template)
    (site,) = (copy / "lib").glob("*/site-packages")
    (site / "edge_effdet" / "cli.py").write_text("changed\n")
    for about in site.glob("edge_effdet-*.dist-info"):
        shutil.rmtree(about)
    with pytest.raises(BundleError, match="does not have edge-effdet as the bundle has it"):
        check_environment(bundle, copy)


def test_a_package_of_the_systems_python_may_stand_in(template, copy):
    """pip installs nothing where the system has the very version."""
    bundle = read_bundle(template)
    (site,) = (copy / "lib").glob("*/site-packages")
    shutil.rmtree(site / "host_packages-1.0.dist-info")
    settings = copy / "pyvenv.cfg"
    settings.write_text(
        settings.read_text().replace("include-system-site-packages = false", "include-system-site-packages = true")
    )
    # Its files are there, so it was installed here.
    with pytest.raises(BundleError, match="does not have host-packages"):
        check_environment(bundle, copy)
    (site / "host_packages.pth").unlink()
    assert check_environment(bundle, copy) > 50
