"""The packages of a device: pip itself chooses them here, out of a folder of packages that were made for the test, and out of the real index."""

from __future__ import annotations

import logging
import platform
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from edge_effdet.artifacts import file_sha256
from edge_effdet.deploying import requirements as module
from edge_effdet.deploying.requirements import (
    EXTRAS,
    ChosenPackages,
    Pin,
    choose_packages,
    download,
    resolve,
    unpinned_requirements,
    write_requirements,
    write_target_requirements,
)
from edge_effdet.device.targets import JETPACKS, TARGETS, get_target
from edge_effdet.errors import InputError, MissingDependency, UsageError
from tests.deploying import make_source, make_wheel

THIS = f"{sys.version_info.major}.{sys.version_info.minor}"
OTHER = "3.10" if THIS != "3.10" else "3.12"


def of_python(python: str, system: str) -> str:
    tag = "cp" + python.replace(".", "")
    return f"{tag}-{tag}-{system}"


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An index that is a folder, with packages of the names that the device asks for."""
    folder = tmp_path / "index 1"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", folder.as_uri())
    monkeypatch.delenv("PIP_CONSTRAINT", raising=False)
    for python in ("3.10", "3.11", "3.12", "3.13"):
        for machine in ("aarch64", "x86_64"):
            make_wheel(folder, "pillow", "13.0.0", tag=of_python(python, f"manylinux_2_28_{machine}"))
            make_wheel(folder, "numpy", "2.2.6", tag=of_python(python, f"manylinux2014_{machine}"))
            if python != "3.10":
                make_wheel(folder, "numpy", "2.4.6", tag=of_python(python, f"manylinux_2_28_{machine}"))
    for version, requires in (("1.32.0", ["flatbuffers", "protobuf>=4"]), ("9.0.0", [])):
        system = "manylinux_2_28" if version == "1.32.0" else "manylinux_2_40"
        for machine in ("aarch64", "x86_64"):
            for python in ("3.10", "3.11", "3.12", "3.13"):
                make_wheel(folder, "onnxruntime", version, requires, of_python(python, f"{system}_{machine}"))
    make_wheel(folder, "flatbuffers", "25.1")
    make_wheel(folder, "protobuf", "7.1")
    make_wheel(folder, "pip", "26.0")
    return folder


def write(folder: Path, target: str, backend: str, python: str | None, wheels: bool) -> bool:
    """Choose the packages of a device and write them."""
    return write_target_requirements(folder, choose_packages(get_target(target), backend, python, wheels))


def chosen(pins: list[Pin]) -> dict[str, str]:
    return {pin.name: pin.version for pin in pins if not pin.build_only}


@pytest.mark.parametrize(
    ("target", "machine", "python"),
    [("arm64-cpu", "aarch64", "3.12"), ("x86-cpu", "x86_64", "3.10"), ("jetson-orin-nano", "aarch64", "3.10")],
)
def test_files_are_those_of_the_device(index: Path, target: str, machine: str, python: str):
    pins = resolve(target, "onnxruntime", python)
    assert chosen(pins) == {
        "flatbuffers": "25.1",
        "numpy": "2.2.6" if python == "3.10" else "2.4.6",
        # 9.0.0 needs a newer glibc than the target has.
        "onnxruntime": "1.32.0",
        "pillow": "13.0.0",
        "protobuf": "7.1",
    }
    assert [pin.name for pin in pins if pin.build_only] == ["pip"]
    for pin in pins:
        assert pin.sha256 == file_sha256(index / pin.file)
        assert pin.file.endswith("py3-none-any.whl") or pin.file.endswith(f"{machine}.whl")
        assert pin.python == python
        assert not pin.is_source


def test_conditions_are_those_of_the_device(index: Path):
    """pip looks at them with the Python that runs it."""
    own = make_wheel(
        index,
        "flatbuffers",
        "25.2",
        [
            f'device_only; python_version == "{OTHER}"',
            f'host_only; python_version == "{THIS}"',
            'arm_only; platform_machine == "aarch64"',
            'windows_only; sys_platform == "win32"',
            f'protobuf<7; python_version == "{OTHER}"',
            'never; extra == "more"',
        ],
    )
    for name in ("device_only", "host_only", "arm_only", "below"):
        make_wheel(index, name, "1.0", ["below"] if name == "device_only" else [])
    make_wheel(index, "protobuf", "6.5")
    assert own.is_file()
    there = chosen(resolve("arm64-cpu", "onnxruntime", OTHER))
    assert {"device_only", "below", "arm_only"} <= set(there) and "host_only" not in there
    assert there["protobuf"] == "6.5"
    here = chosen(resolve("x86-cpu", "onnxruntime", THIS))
    assert "host_only" in here and not {"device_only", "below", "arm_only", "windows_only", "never"} & set(here)
    assert here["protobuf"] == "7.1"


def test_packages_that_cannot_fit_together(index: Path):
    make_wheel(index, "flatbuffers", "25.2", [f'protobuf<4; python_version == "{OTHER}"'])
    make_wheel(index, "protobuf", "3.9")
    with pytest.raises(InputError) as caught:
        resolve("arm64-cpu", "onnxruntime", OTHER)
    assert "\n" not in str(caught.value)


def test_a_package_that_is_not_there(index: Path):
    with pytest.raises(InputError, match="openvino"):
        resolve("arm64-cpu", "openvino", "3.12")


@pytest.fixture
def cuda_index(index: Path) -> Path:
    for version in ("12.9.0", "13.5.0"):
        for python in ("3.10", "3.12"):
            make_wheel(
                index, "cuda_bindings", version, ["cuda-pathfinder"], of_python(python, "manylinux_2_24_aarch64")
            )
            make_wheel(index, "cuda_bindings", version, ["cuda-pathfinder"], of_python(python, "manylinux_2_24_x86_64"))
    make_wheel(index, "cuda_pathfinder", "1.9")
    make_source(
        index,
        "pycuda",
        "2026.1",
        ["pytools>=2011.2", "platformdirs", 'numpy; extra == "test"'],
        ["setuptools", "wheel", "numpy>=2"],
    )
    for name in ("pytools", "platformdirs", "setuptools", "wheel"):
        make_wheel(index, name, "1.0" if name != "pytools" else "2026.1", ["packaging"] if name == "wheel" else [])
    make_wheel(index, "packaging", "26.0")
    return index


@pytest.mark.parametrize(("python", "major"), [("3.10", "12"), ("3.12", "13")])
def test_tensorrt_on_a_jetson(cuda_index: Path, python: str, major: str):
    """TensorRT is JetPack's, pycuda is compiled on the device, and cuda-bindings fits JetPack's CUDA."""
    pins = resolve("jetson-orin-nano", "tensorrt", python)
    found = chosen(pins)
    assert "tensorrt" not in found
    assert found["cuda-bindings" if "cuda-bindings" in found else "cuda_bindings"].startswith(f"{major}.")
    assert {"pycuda", "pytools", "platformdirs", "cuda_pathfinder"} <= set(found)
    (source,) = [pin for pin in pins if pin.is_source]
    assert (source.name, source.file, source.build_only) == ("pycuda", "pycuda-2026.1.tar.gz", False)
    # NumPy is installed anyway.
    assert {pin.name for pin in pins if pin.build_only} == {"setuptools", "wheel", "packaging", "pip"}


@pytest.mark.slow
def test_a_bundle_for_two_pythons_holds_the_files_of_both(cuda_index: Path, tmp_path: Path):
    folder = tmp_path / "bundle"
    folder.mkdir()
    assert write(folder, "jetson-orin-nano", "tensorrt", None, wheels=True) is True
    text = (folder / "requirements.txt").read_text()
    assert text.startswith("# for jetson-orin-nano, tensorrt, CPython 3.10, 3.12\n")
    assert 'numpy==2.2.6 ; python_version == "3.10" \\\n    --hash=sha256:' in text
    assert 'numpy==2.4.6 ; python_version == "3.12" \\\n    --hash=sha256:' in text
    assert not re.search(r"^(tensorrt|setuptools|wheel|pip|packaging)==", text, re.MULTILINE)
    names = {path.name for path in (folder / "wheels").iterdir()}
    assert {
        "pycuda-2026.1.tar.gz",
        "setuptools-1.0-py3-none-any.whl",
        "pip-26.0-py3-none-any.whl",
        "packaging-26.0-py3-none-any.whl",
    } <= names
    assert {f"pillow-13.0.0-{of_python(each, 'manylinux_2_28_aarch64')}.whl" for each in ("3.10", "3.12")} <= names
    assert not [name for name in names if "x86_64" in name or "cp311" in name]


def test_pip_installs_from_what_was_gathered(index: Path, tmp_path: Path):
    """On this machine and Python, with hashes and without an index, as the device does; and it refuses a wheel that was exchanged."""
    make_wheel(index, "openvino", "2026.4", ["numpy"], of_python(THIS, f"manylinux_2_28_{platform.machine()}"))
    target = next(each for each in ("x86-cpu", "arm64-cpu") if TARGETS[each].machine == platform.machine())
    assert write(tmp_path, target, "openvino", None, wheels=True) is True
    command = [
        sys.executable, "-m", "pip", "install", "--isolated", "--no-index", "--find-links", str(tmp_path / "wheels"), "--require-hashes",
        "--ignore-installed", "--no-deps", "-r", str(tmp_path / "requirements.txt"), "--target",
    ]  # fmt: skip
    done = subprocess.run([*command, str(tmp_path / "site")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "site" / "openvino.py").is_file()
    make_wheel(tmp_path / "wheels", "openvino", "2026.4", [], of_python(THIS, f"manylinux_2_28_{platform.machine()}"))
    done = subprocess.run([*command, str(tmp_path / "site2")], capture_output=True, text=True)
    assert "DO NOT MATCH THE HASHES" in done.stderr


def test_a_file_that_changed_after_it_was_chosen(index: Path, tmp_path: Path):
    pins = resolve("x86-cpu", "onnxruntime", "3.12")
    wrong = [replace(pin, sha256="0" * 64) if pin.name == "numpy" else pin for pin in pins]
    with pytest.raises(InputError):
        download(wrong, tmp_path / "wheels", "x86-cpu")


def test_without_a_network(
    index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.delenv("PIP_FIND_LINKS")
    # Nothing listens there.
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "0")
    with caplog.at_level(logging.WARNING):
        assert write(tmp_path, "arm64-cpu", "onnxruntime", "3.12", wheels=False) is False
    assert "the device takes the newest ones and checks no hash" in caplog.text
    assert (tmp_path / "requirements.txt").read_text() == "numpy>=1.26\npillow>=10.3\nonnxruntime>=1.19\n"
    with pytest.raises(InputError, match="pip reaches no package index"):
        choose_packages(get_target("arm64-cpu"), "onnxruntime", "3.12", wheels=True)


def test_what_no_bundle_can_hold(cuda_index: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    """Off a Jetson TensorRT's package fetches its libraries by itself, so nothing has a hash."""
    target = get_target("x86-gpu")
    with pytest.raises(UsageError, match="`wheels` cannot gather tensorrt for x86-gpu"):
        choose_packages(target, "tensorrt", "3.12", wheels=True)
    with caplog.at_level(logging.WARNING):
        assert write(tmp_path, "x86-gpu", "tensorrt", "3.12", wheels=False) is False
    assert "has no hash" in caplog.text
    text = (tmp_path / "requirements.txt").read_text()
    assert text.endswith("tensorrt>=10.3\n") and "--hash" not in text and "numpy==2.4.6\n" in text


def test_a_python_that_the_target_does_not_have():
    with pytest.raises(UsageError, match=r"Jetson Thor has Python 3\.12 and not 3\.10; give one of these as `python`"):
        choose_packages(get_target("jetson-thor"), "tensorrt", "3.10", wheels=False)
    for wrong in ("2.7", "abc", ""):
        with pytest.raises(UsageError, match=rf"and not {wrong}; give"):
            choose_packages(get_target("x86-cpu"), "onnxruntime", wrong, wheels=False)


def test_what_is_chosen_is_not_chosen_again(index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Minutes lie between the choice and the writing, in which an index may get a newer release."""
    packages = choose_packages(get_target("x86-cpu"), "onnxruntime", "3.12", wheels=False)
    assert isinstance(packages, ChosenPackages) and packages.pins
    make_wheel(index, "flatbuffers", "99.0")
    assert write_target_requirements(tmp_path, packages) is False
    assert "flatbuffers==25.1" in (tmp_path / "requirements.txt").read_text()


def test_without_pip_or_packaging(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "packaging.requirements", None)
        with pytest.raises(MissingDependency, match=r"edge-effdet\[deploy\]"):
            resolve("x86-cpu", "onnxruntime", "3.12")
    bare = tmp_path / "bare"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(bare)], check=True)
    monkeypatch.setattr(module.sys, "executable", str(bare / "bin" / "python"))
    with pytest.raises(MissingDependency, match="pip is not installed"):
        resolve("x86-cpu", "onnxruntime", "3.12")


def test_lines_of_one_python_have_no_condition(tmp_path: Path):
    pins = [
        Pin(name="b", version="2", file="b-2-py3-none-any.whl", sha256="b" * 64, python="3.12"),
        Pin(name="A", version="1", file="a-1.tar.gz", sha256="a" * 64, python="3.12"),
        Pin(name="c", version="3", file="c-3-py3-none-any.whl", sha256="c" * 64, python="3.12", build_only=True),
    ]
    write_requirements(tmp_path / "r.txt", pins, head="by hand")
    assert (
        tmp_path / "r.txt"
    ).read_text() == f"# by hand\nA==1 \\\n    --hash=sha256:{'a' * 64}\nb==2 \\\n    --hash=sha256:{'b' * 64}\n"


def test_the_real_index_has_wheels_for_jetpack_6():
    """Python 3.10 and glibc 2.35 on Arm, for which newer releases of NumPy and onnxruntime have no wheels."""
    try:
        pins = {pin.name: pin for pin in resolve("jetson-orin-nano", "onnxruntime", "3.10")}
    except module._NoNetwork:
        pytest.skip("no package index can be reached")
    assert pins["numpy"].version == "2.2.6"
    for name in ("numpy", "pillow", "onnxruntime"):
        assert pins[name].file.endswith("aarch64.whl") and "cp310" in pins[name].file
    assert pins["pip"].build_only


def test_every_backend_has_its_extra():
    from edge_effdet.backends.base import BACKENDS

    assert set(EXTRAS) == set(BACKENDS)
    for backend in EXTRAS:
        assert "numpy>=1.26" in unpinned_requirements(backend)


def test_every_ubuntu_of_a_jetson_is_known():
    for target in TARGETS.values():
        for version in target.jetpacks:
            assert JETPACKS[version].ubuntu in module._GLIBC_OF_UBUNTU


@pytest.mark.parametrize("backend", EXTRAS)
def test_what_reads_cameras_is_asked_for_with_video_alone(backend):
    names = [re.split(r"[<>=~; ]", text)[0] for text in unpinned_requirements(backend, video=True)]
    further = {"av", "paho-mqtt", "trackforge"}
    assert further <= set(names) and len(names) == len(set(names))
    plain = [re.split(r"[<>=~; ]", text)[0] for text in unpinned_requirements(backend)]
    assert plain == [name for name in names if name not in further]
