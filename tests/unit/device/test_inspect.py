"""The inspection of a device: boards on which all is there, and boards on which one thing is wrong or missing, from copies of their files."""

from __future__ import annotations

import os
import platform
import shutil
import socket
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest

from edge_effdet.artifacts.reading import to_json
from edge_effdet.device import inspect
from edge_effdet.device.findings import Finding, Inspection
from edge_effdet.device.inspect import Plans, inspect_device, workspace_limit
from edge_effdet.device.manifest import BundledGraph, Manifest
from edge_effdet.device.targets import TARGETS
from edge_effdet.errors import BackendUnavailable, BundleError, EdgeEffDetError, UsageError
from tests import kernel_trees
from tests.deploying import make_wheel
from tests.kernel_trees import AGX_ORIN_7, ORIN_NANO_6, ORIN_NX_6, THOR_7, Board, jetson, write

NO_SWAP = {"proc/swaps": "Filename Type Size Used Priority\n/dev/zram0 partition 3611392 0 5"}
NO_ROUTE = {"proc/net/route": "Iface Destination Gateway Flags RefCnt Use Metric Mask MTU Window IRTT"}


def manifest(target: str = "jetson-orin-nano", backend: str = "tensorrt", complete: bool = False) -> Manifest:
    return Manifest(
        name="demo",
        release="1.0",
        created_at="2026-11-01T00:00:00+00:00",
        made_by="0.1.0",
        target=target,
        backend=backend,
        precision="int8",
        graphs={"int8": BundledGraph(graph="graphs/demo.onnx", record="records/demo.json", layers="layers/demo.json")},
        wheel="wheels/edge_effdet-0.1.0-py3-none-any.whl",
        requirements="requirements.txt",
        complete=complete,
    )


def found(inspection: Inspection, what: str) -> Finding:
    (finding,) = [each for each in inspection.findings if each.what == what]
    return finding


@pytest.mark.parametrize(
    ("target", "board", "workspace"),
    [
        ("jetson-orin-nano", ORIN_NANO_6, 1344),
        ("jetson-orin-nx", ORIN_NX_6, 3392),
        ("jetson-agx-orin", AGX_ORIN_7, 4096),
        ("jetson-thor", THOR_7, 4096),
        ("jetson-thor", replace(THOR_7, l4t="39.2.0", tensorrt="10.16.2.10-1+cuda13.2", cuda="13.2"), 4096),
        (
            "jetson-orin-nano",
            replace(
                ORIN_NANO_6,
                l4t="39.2.1",
                ubuntu="Ubuntu 24.04.4 LTS",
                python="3.12",
                tensorrt="10.16.2.10-1+cuda13.2",
                cuda="13.2",
            ),
            1344,
        ),
    ],
)
def test_a_jetson_on_which_all_is_there(tmp_path: Path, target: str, board: Board, workspace: int):
    inspection = inspect_device(target, root=jetson(tmp_path, board))
    assert [each for each in inspection.findings if each.level != "fine"] == []
    inspection.require()
    assert inspection.workspace_mib == workspace
    assert board.l4t in found(inspection, "JetPack").found
    assert found(inspection, "Python").found == f"version {board.python}"
    assert found(inspection, "TensorRT").found == f"version {board.tensorrt.split('-')[0]}"


@pytest.mark.parametrize("name", TARGETS)
def test_every_target_can_be_asked_for_on_any_machine(tmp_path: Path, name: str):
    for root in (jetson(tmp_path / "jetson"), kernel_trees.laptop(tmp_path / "laptop"), tmp_path / "nothing"):
        inspection = inspect_device(name, root=root, plans=Plans(install_root=tmp_path))
        assert inspection.target == name
        for each in inspection.findings:
            assert each.what and each.found
            assert not each.fix.endswith(".") and (each.level == "fine" or (each.fix and each.wanted)), each
        assert all(each.what in inspection.text() for each in inspection.findings)
        assert (inspection.workspace_mib > 0) <= name.startswith("jetson-")


def remove(root: Path, *names: str) -> None:
    for name in names:
        path = root / name
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


L4T = "etc/nv_tegra_release"
LINE = "# R{} (release), REVISION: {}, GCID: 1, BOARD: generic"


@pytest.mark.parametrize(
    ("target", "board", "files", "missing", "error", "words"),
    [
        ("jetson-thor", ORIN_NANO_6, {}, (), BundleError, ["JetPack is release 6.2", "not made for Jetson Thor"]),
        ("x86-cpu", ORIN_NANO_6, {}, (), BundleError, ["architecture is aarch64", "x86_64", "`target`"]),
        (
            "jetson-orin-nano",
            ORIN_NANO_6,
            {"proc/sys/kernel/arch": "x86_64"},
            (),
            BundleError,
            ["architecture is x86_64"],
        ),
        (
            "jetson-orin-nano",
            ORIN_NANO_6,
            {L4T: LINE.format(35, "4.1")},
            (),
            BundleError,
            ["5.1.2", "Python is 3.8", "flash"],
        ),
        ("jetson-orin-nano", ORIN_NANO_6, {L4T: LINE.format(36, "3.0")}, (), BundleError, ["6.0", "TensorRT is 8.6"]),
        (
            "jetson-orin-nano",
            ORIN_NANO_6,
            {L4T: LINE.format(32, "7.1")},
            (),
            BundleError,
            ["too old", "32.7.1", "6.1 to 7.2"],
        ),
        ("jetson-orin-nano", ORIN_NANO_6, {L4T: LINE.format(38, "2.0")}, (), BundleError, ["7.0", "not made for"]),
        (
            "jetson-orin-nano",
            ORIN_NANO_6,
            {"var/lib/dpkg/status": ""},
            (L4T,),
            BundleError,
            ["JetPack is missing", "/etc/nv_tegra_release"],
        ),
        (
            "jetson-thor",
            replace(THOR_7, compatible="nvidia,p3701-0005"),
            {},
            (),
            BundleError,
            ["module is AGX Orin 64 GB (SM 8.7)", "Thor T5000"],
        ),
        (
            "jetson-orin-nano",
            ORIN_NANO_6,
            {},
            ("usr/bin/python3",),
            BackendUnavailable,
            ["Python is missing", "apt install python3"],
        ),
        (
            "jetson-orin-nano",
            replace(ORIN_NANO_6, python="3.8"),
            {},
            (),
            BackendUnavailable,
            ["version 3.8", "3.10 to 3.13"],
        ),
        (
            "jetson-orin-nano",
            ORIN_NANO_6,
            {},
            ("usr/lib/python3.10/ensurepip",),
            BackendUnavailable,
            ["without ensurepip", "apt install python3.10-venv"],
        ),
        (
            "jetson-orin-nano",
            ORIN_NANO_6,
            {},
            ("usr/lib/python3.10/venv",),
            BackendUnavailable,
            ["without venv", "python3.10-venv"],
        ),
        (
            "jetson-orin-nano",
            ORIN_NANO_6,
            {},
            ("usr/lib/python3.10/dist-packages/tensorrt",),
            BackendUnavailable,
            ["TensorRT is missing", "version 10.3 from apt", "sudo apt install python3-libnvinfer"],
        ),
        (
            "jetson-orin-nano",
            ORIN_NANO_6,
            {"usr/local/lib/python3.10/dist-packages/tensorrt/__init__.py": ""},
            ("usr/lib/python3.10/dist-packages/tensorrt",),
            BackendUnavailable,
            ["the one of pip in", "made for servers"],
        ),
        (
            "jetson-orin-nano",
            replace(ORIN_NANO_6, tensorrt="8.6.2.3-1+cuda12.2"),
            {},
            (),
            BackendUnavailable,
            ["version 8.6.2.3", "update JetPack"],
        ),
        (
            "jetson-orin-nano",
            ORIN_NANO_6,
            {"usr/bin/python3.10": "#!/bin/sh\necho 'ImportError: libnvinfer.so.10: cannot open' >&2\nexit 1"},
            (),
            BackendUnavailable,
            ["cannot import (ImportError: libnvinfer.so.10: cannot open)", "--reinstall"],
        ),
        (
            "jetson-orin-nano",
            ORIN_NANO_6,
            {},
            ("usr/local/cuda", "usr/local/cuda-12.6"),
            BackendUnavailable,
            ["without nvcc, cuda.h", "cuda-toolkit-12-6", "PATH", "pycuda has no wheel"],
        ),
        (
            "jetson-orin-nano",
            ORIN_NANO_6,
            {},
            ("usr/bin/g++", "usr/include/python3.10"),
            BackendUnavailable,
            ["without g++, Python.h", "apt install g++ python3.10-dev"],
        ),
    ],
)
def test_what_keeps_a_bundle_from_a_device(tmp_path: Path, target, board, files, missing, error, words):
    root = jetson(tmp_path, board)
    remove(root, *missing)
    write(root, files)
    inspection = inspect_device(target, root=root)
    with pytest.raises(EdgeEffDetError) as raised:
        inspection.require()
    message = str(raised.value)
    assert type(raised.value) is error and raised.value.exit_code == (2 if error is BundleError else 3)
    assert all(word in message for word in words), message
    assert message.endswith(".") and "\n" not in message and TARGETS[target].title in message
    assert "blocking" in inspection.text()


def warnings_of(inspection: Inspection) -> dict[str, str]:
    inspection.require()
    return {each.what: f"{each.found}; {each.fix}" for each in inspection.warnings}


@pytest.mark.parametrize(
    ("files", "missing", "what", "words"),
    [
        ({L4T: LINE.format(40, "1.0")}, (), "JetPack", ["40.1.0", "does not know"]),
        ({L4T: LINE.format(36, "4.9")}, (), "JetPack", ["36.4.9"]),
        ({"etc/os-release": 'PRETTY_NAME="Debian GNU/Linux 12 (bookworm)"'}, (), "system", ["Debian", "JetPack 6.2"]),
        (
            {"usr/local/lib/python3.10/dist-packages/tensorrt/__init__.py": ""},
            (),
            "TensorRT",
            ["the one of pip", "pip uninstall tensorrt"],
        ),
        (NO_SWAP, (), "memory", ["0.0 GiB on a disk", "swapon /swapfile", "1344 MiB"]),
        (
            {"proc/meminfo": "MemTotal: 7802844 kB\nMemAvailable: 1200000 kB"},
            (),
            "memory",
            ["1.1 GiB available", "desktop"],
        ),
        (NO_ROUTE, (), "network", ["no default route", "`wheels`"]),
        ({}, ("run/systemd/system",), "systemd", ["not running", "background"]),
        ({"proc/device-tree/compatible": "nvidia,p3767-0000"}, (), "module", ["Orin NX 16 GB", "same kind"]),
        (
            {"proc/device-tree/compatible": "other", "proc/device-tree/model": "Other"},
            (),
            "module",
            ["unknown (Other)"],
        ),
    ],
)
def test_what_a_person_should_know_of_and_nothing_else(tmp_path: Path, files, missing, what, words):
    root = write(jetson(tmp_path), files)
    remove(root, *missing)
    warned = warnings_of(inspect_device("jetson-orin-nano", root=root))
    assert list(warned) == [what]
    assert all(word in warned[what] for word in words), warned[what]


def test_another_tensorrt_than_jetpacks_is_told(tmp_path: Path):
    root = jetson(tmp_path, replace(ORIN_NANO_6, tensorrt="10.7.0.23-1+cuda12.6"))
    warned = warnings_of(inspect_device("jetson-orin-nano", root=root))
    assert list(warned) == ["TensorRT"] and "not the one of JetPack 6.2" in warned["TensorRT"]


def test_a_container_need_not_tell_its_jetpack(tmp_path: Path):
    root = write(jetson(tmp_path), {".dockerenv": ""})
    remove(root, L4T)
    write(root, {"var/lib/dpkg/status": "Package: python3-libnvinfer\nVersion: 10.3.0.30-1+cuda12.5"})
    warned = warnings_of(inspect_device("jetson-orin-nano", root=root))
    assert list(warned) == ["JetPack"] and "host" in warned["JetPack"]


def test_a_tensorrt_without_debians_record_tells_its_version_itself(tmp_path: Path):
    root = write(jetson(tmp_path), {"var/lib/dpkg/status": ""})
    assert found(inspect_device("jetson-orin-nano", root=root), "TensorRT").found == "version unknown"
    write(root, {"usr/lib/python3.10/dist-packages/tensorrt-10.3.0.dist-info/METADATA": ""})
    finding = found(inspect_device("jetson-orin-nano", root=root), "TensorRT")
    assert (finding.found, finding.level) == ("version 10.3.0", "fine")


def test_pycuda_of_the_system_needs_no_compiler(tmp_path: Path):
    root = write(jetson(tmp_path), {"usr/lib/python3/dist-packages/pycuda/__init__.py": ""})
    remove(root, "usr/local/cuda", "usr/local/cuda-12.6", "usr/bin/g++")
    inspection = inspect_device("jetson-orin-nano", root=root)
    inspection.require()
    assert "not needed" in found(inspection, "CUDA toolkit").found


def test_nvcc_is_found_outside_of_path(tmp_path: Path):
    """JetPack does not put it there."""
    root = jetson(tmp_path)
    remove(root, "usr/local/cuda")
    assert found(inspect_device("jetson-orin-nano", root=root), "CUDA toolkit").found.endswith("cuda-12.6/bin")


def test_a_complete_bundle_needs_no_network_and_brings_pip(tmp_path: Path):
    root = write(jetson(tmp_path), NO_ROUTE)
    remove(root, "usr/lib/python3.10/ensurepip")
    inspection = inspect_device("jetson-orin-nano", manifest(complete=True), root)
    assert warnings_of(inspection) == {}
    assert "none is needed" in found(inspection, "network").fix
    assert "pip in the bundle" in found(inspection, "venv and pip").found
    older = inspect_device(
        "jetson-thor", manifest("jetson-thor", complete=True), jetson(tmp_path / "3.11", replace(THOR_7, python="3.11"))
    )
    assert "`python` 3.11" in found(older, "Python").fix


def test_a_route_of_ipv6_is_one(tmp_path: Path):
    line = f"{'0' * 32} 00 {'0' * 32} 00 fe80000000000000021122fffe334455 00000400 00000001 00000000 00000003 {{}}"
    root = write(jetson(tmp_path), NO_ROUTE | {"proc/net/ipv6_route": line.format("lo")})
    assert found(inspect_device("jetson-orin-nano", root=root), "network").level == "warning"
    write(root, {"proc/net/ipv6_route": line.format("wlan0")})
    assert found(inspect_device("jetson-orin-nano", root=root), "network").level == "fine"


def test_another_backend_needs_no_tensorrt(tmp_path: Path):
    root = jetson(tmp_path)
    remove(root, "usr/lib/python3.10/dist-packages/tensorrt", "usr/local/cuda-12.6", "usr/local/cuda")
    inspection = inspect_device("jetson-orin-nano", manifest(backend="onnxruntime"), root)
    inspection.require()
    assert inspection.workspace_mib == 0 and "TensorRT" not in {each.what for each in inspection.findings}
    with pytest.raises(BundleError, match="backend is tensorrt-rtx"):
        inspect_device("jetson-orin-nano", manifest(backend="tensorrt-rtx"), root).require()


def computer(root: Path, driver: bool = True, capability: str = "8.9") -> Path:
    """The laptop, as a computer with a GPU."""
    kernel_trees.laptop(root)
    files: dict[str, str | int] = {
        "usr/bin/python3.12": kernel_trees.PROGRAM,
        "usr/bin/g++": kernel_trees.PROGRAM,
        "usr/lib/python3.12/venv/__init__.py": "",
        "usr/lib/python3.12/ensurepip/_bundled/pip-24.0-py3-none-any.whl": "",
        "usr/include/python3.12/Python.h": "",
        "usr/local/cuda/bin/nvcc": kernel_trees.PROGRAM,
        "usr/local/cuda/targets/x86_64-linux/include/cuda.h": "",
    }
    if driver:
        files["proc/driver/nvidia/version"] = (
            "NVRM version: NVIDIA UNIX x86_64 Kernel Module  570.86.15  Thu Jan 23 2025"
        )
        files["usr/bin/nvidia-smi"] = f"#!/bin/sh\necho 'NVIDIA GeForce RTX 4090, {capability}'"
    write(root, files)
    (root / "usr/bin/python3").symlink_to("python3.12")
    for name in ("usr/bin/nvidia-smi", "usr/local/cuda/bin/nvcc"):
        if (root / name).exists():
            (root / name).chmod(0o755)
    return root


def test_a_computer_with_a_gpu(tmp_path: Path):
    root = computer(tmp_path)
    inspection = inspect_device("x86-gpu", root=root)
    inspection.require()
    assert found(inspection, "NVIDIA driver").found == "version 570.86.15, NVIDIA GeForce RTX 4090 (SM 8.9)"
    assert inspection.workspace_mib == 0, "its GPU has a memory of its own"
    assert not {"TensorRT", "JetPack", "module"} & {each.what for each in inspection.findings}, (
        "pip installs TensorRT there"
    )


def test_a_computer_without_a_driver_or_with_an_old_gpu(tmp_path: Path):
    with pytest.raises(BackendUnavailable, match=r"NVIDIA driver is missing.*nvidia-smi"):
        inspect_device("x86-gpu", root=computer(tmp_path / "none", driver=False)).require()
    old = inspect_device("x86-gpu", root=computer(tmp_path / "old", capability="6.1"))
    assert found(old, "NVIDIA driver").level == "warning" and "SM 6.1" in found(old, "NVIDIA driver").found
    inspect_device("x86-gpu", manifest("x86-gpu", "onnxruntime"), computer(tmp_path / "cpu", driver=False)).require()


def test_a_disk_that_is_too_small_is_told(tmp_path: Path, monkeypatch):
    root = jetson(tmp_path)
    free = shutil.disk_usage(tmp_path).free >> 20
    place = tmp_path / "not" / "there" / "yet"
    monkeypatch.setitem(inspect.DISK_MIB, "tensorrt", free + 1000)
    with pytest.raises(BundleError, match=rf"disk is at {tmp_path} .* free and has to be at least .*`root`"):
        inspect_device("jetson-orin-nano", root=root, plans=Plans(install_root=place)).require()
    monkeypatch.setitem(inspect.DISK_MIB, "tensorrt", free - 1000)
    warned = warnings_of(inspect_device("jetson-orin-nano", root=root, plans=Plans(install_root=place)))
    assert "an update is installed beside" in warned["disk"]
    assert not place.exists(), "an inspection makes nothing"


def test_what_is_there_already_needs_no_room(tmp_path: Path, monkeypatch):
    """A run that was cut off has made a part, and a container that starts again finds all of it."""
    root = jetson(tmp_path)
    free = shutil.disk_usage(tmp_path).free >> 20
    monkeypatch.setitem(inspect.DISK_MIB, "tensorrt", free + 1000)
    asked: list[tuple[str, int]] = []

    def look(made: int | None) -> Finding:
        def tell(python, workspace_mib: int) -> int | None:
            asked.append((python.version, workspace_mib))
            return made

        plans = Plans(install_root=tmp_path, made=tell)
        return found(inspect_device("jetson-orin-nano", root=root, plans=plans), "disk")

    assert look(0).level == look(500).level == "blocking"
    assert look(2000).level == "warning"
    assert look(None).level == "fine" and "the version is there" in look(None).found
    assert set(asked) == {("3.10", 1344)}


# The wheels of a bundle


def wheels_of(folder: Path, *names: str) -> Path:
    """A bundle's folder with wheels of these names and a file of requirements that asks for them."""
    (folder / "wheels").mkdir(parents=True)
    for name in ("edge_effdet-0.1.0-py3-none-any.whl", *names):
        package, version, *_ = name.split("-")
        make_wheel(folder / "wheels", package, version, tag=name.removesuffix(".whl").split("-", 2)[2])
    lines = [f"{name.split('-')[0]}=={name.split('-')[1]} --hash=sha256:00" for name in names]
    (folder / "requirements.txt").write_text("\n".join(dict.fromkeys(lines)))
    return folder


def test_wheels_for_another_python_are_told_before_anything_is_copied(tmp_path: Path):
    root = jetson(tmp_path / "board")
    folder = wheels_of(
        tmp_path / "bundle", "numpy-2.4.6-cp312-cp312-manylinux2014_aarch64.whl", "flatbuffers-25.1-py3-none-any.whl"
    )
    inspection = inspect_device("jetson-orin-nano", manifest(complete=True), root, folder=folder)
    with pytest.raises(BundleError) as raised:
        inspection.require()
    told = str(raised.value)
    assert (
        "the wheel of numpy is numpy-2.4.6-cp312-cp312-manylinux2014_aarch64.whl and has to be one for Python 3.10 on aarch64"
        in told
    )
    assert "give a `python` of version 3.12" in told and "`python` 3.10" in told and "\n" not in told
    # What dry runs print.
    assert "the wheel of numpy" in inspection.text()
    # Without all wheels pip fetches what it needs.
    inspect_device("jetson-orin-nano", manifest(complete=False), root, folder=folder).require()


def test_wheels_for_another_machine_or_a_missing_one_are_told(tmp_path: Path):
    root = jetson(tmp_path / "board")
    other = wheels_of(tmp_path / "other", "numpy-2.2.6-cp310-cp310-manylinux2014_x86_64.whl")
    with pytest.raises(BundleError, match=r"manylinux2014_x86_64\.whl and has to be one for Python 3\.10 on aarch64"):
        inspect_device("jetson-orin-nano", manifest(complete=True), root, folder=other).require()
    (other / "wheels" / "numpy-2.2.6-cp310-cp310-manylinux2014_x86_64.whl").unlink()
    with pytest.raises(BundleError, match="the wheel of numpy is missing"):
        inspect_device("jetson-orin-nano", manifest(complete=True), root, folder=other).require()


@pytest.mark.parametrize("complete", [True, False])
def test_a_bundle_for_other_pythons_is_told(tmp_path: Path, complete: bool):
    """pip passes over lines of another Python, and would install nothing at all."""
    folder = wheels_of(tmp_path / "bundle")
    (folder / "requirements.txt").write_text(
        'numpy==2.2.6 ; python_version == "3.10"\nnumpy==2.4.6 ; python_version == "3.12"\n'
    )
    board = jetson(tmp_path / "board", replace(ORIN_NANO_6, python="3.11"))
    inspection = inspect_device("jetson-orin-nano", manifest(complete=complete), board, folder=folder)
    with pytest.raises(BundleError, match=r"the bundle is for Python 3\.10 and 3\.12 and has to be for Python 3\.11"):
        inspection.require()


def test_wheels_for_this_python_are_fine(tmp_path: Path):
    folder = wheels_of(
        tmp_path / "bundle",
        "numpy-2.2.6-cp310-cp310-manylinux2014_aarch64.whl",
        "numpy-2.2.6-cp312-cp312-manylinux2014_aarch64.whl",
    )
    inspection = inspect_device("jetson-orin-nano", manifest(complete=True), jetson(tmp_path / "board"), folder=folder)
    inspection.require()
    assert found(inspection, "wheels").found == "for Python 3.10 on aarch64"


# What a unit of the system can run


def test_a_python_that_the_unit_of_the_service_cannot_run_is_told(tmp_path: Path):
    """The unit sees no home folders, and its user enters only what all users may."""
    plans = Plans(install_root=tmp_path, closed=True, hidden=("/home", "/root", "/run/user"))
    inspection = inspect_device("x86-cpu", plans=plans)
    here = Path(sys.executable).resolve()
    finding = found(inspection, "Python")
    in_home = any(here.is_relative_to(folder) for folder in plans.hidden)
    assert (finding.level == "blocking") == in_home
    hidden = inspect_device("x86-cpu", plans=replace(plans, hidden=(str(here.parent),)))
    with pytest.raises(BackendUnavailable) as raised:
        hidden.require()
    told = str(raised.value)
    assert f"Python is in {here.parent}, where the unit of the service cannot run it, and has to be" in told
    assert "/usr/bin/python3" in told and "`service` process" in told and "\n" not in told
    # Where nobody runs it but the user who installs, it may lie where it likes.
    assert found(inspect_device("x86-cpu", plans=Plans(install_root=tmp_path)), "Python").level == "fine"


def test_a_place_that_the_user_of_the_service_may_not_enter_is_told():
    # The folders of pytest are for their owner alone.
    with tempfile.TemporaryDirectory() as name:
        open_folder = Path(name)
        open_folder.chmod(0o755)
        place = open_folder / "closed" / "edge-effdet"
        place.parent.mkdir(mode=0o700)
        plans = Plans(install_root=place, closed=True)
        finding = found(inspect_device("x86-cpu", plans=plans), "place")
        assert finding.level == "blocking" and f"chmod o+x {place.parent}" in finding.fix
        place.parent.chmod(0o711)
        assert "place" not in {each.what for each in inspect_device("x86-cpu", plans=plans).findings}


@pytest.mark.parametrize(("now", "level"), [(0, "warning"), (1_600_000_000, "warning"), (1_790_000_000, "fine")])
def test_a_clock_without_a_battery_begins_in_1970(now: float, level: str):
    finding = inspect._clock(now)
    assert finding.level == level
    assert level == "fine" or ("set-ntp" in finding.fix and "does not depend on it" in finding.fix)


def test_cameras_are_of_the_group_video(tmp_path: Path, monkeypatch):
    root = jetson(tmp_path)
    monkeypatch.setattr(os, "getuid", lambda: 4711)
    write(root, {"etc/passwd": "root:x:0:0::/root:/bin/sh\nowner:x:4711:1000::/home/owner:/bin/sh"})
    assert found(inspect_device("jetson-orin-nano", root=root), "cameras").level == "fine"
    write(root, {"etc/group": "root:x:0:\nvideo:x:44:other,owners"})
    finding = found(inspect_device("jetson-orin-nano", root=root), "cameras")
    assert finding.level == "warning" and "usermod -aG video owner" in finding.fix
    write(root, {"etc/passwd": "owner:x:4711:44::/home/owner:/bin/sh"})
    assert found(inspect_device("jetson-orin-nano", root=root), "cameras").level == "fine", "its own group is video"
    remove(root, "dev/video0")
    assert found(inspect_device("jetson-orin-nano", root=root), "cameras").found == "none attached"


def test_power_modes_are_named_and_not_numbered(tmp_path: Path):
    root = write(jetson(tmp_path), {"var/lib/nvpmodel/status": "pmode:0000"})
    finding = found(inspect_device("jetson-orin-nano", root=root), "power mode")
    assert (
        (finding.found, finding.level) == ("15W", "fine")
        and "MAXN_SUPER" in finding.fix
        and "nvpmodel -m 2" in finding.fix
    )
    remove(root, "etc/nvpmodel.conf")
    finding = found(inspect_device("jetson-orin-nano", root=root), "power mode")
    assert (finding.found, finding.fix) == ("unknown", "")


@pytest.mark.parametrize(
    ("total", "limit"), [(0, 256), (2048, 256), (3600, 384), (7620, 1344), (15641, 3392), (62780, 4096), (125806, 4096)]
)
def test_the_workspace_leaves_room(total: int, limit: int):
    assert workspace_limit(total) == limit
    assert limit % 64 == 0 and (total < 3600 or limit <= total // 4)


def test_this_machine(tmp_path: Path, monkeypatch):
    """Nothing is asked of a network, and what is found is what Python says of it."""

    def refuse(*_: object) -> None:
        raise AssertionError("a connection")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    inspection = inspect_device("x86-cpu", plans=Plans(install_root=tmp_path))
    assert found(inspection, "architecture").found == platform.machine()
    assert found(inspection, "Python").found == "version " + ".".join(map(str, sys.version_info[:2]))
    assert found(inspection, "memory").found.startswith("total ")
    other = inspect_device("x86-cpu", plans=Plans(install_root=tmp_path, python=str(tmp_path / "no python")))
    assert found(other, "Python").found == f"not to be run as {tmp_path / 'no python'}"
    # An environment is no system's Python unless it was made of it, and TensorRT's package is the system's.
    if sys.base_prefix != "/usr":
        assert (
            found(inspect_device("jetson-thor", plans=Plans(install_root=tmp_path)), "Python").wanted
            == "the system's own"
        )


def test_an_inspection_can_be_printed_and_written(tmp_path: Path):
    inspection = inspect_device("jetson-orin-nano", root=write(jetson(tmp_path), NO_SWAP))
    lines = inspection.text().splitlines()
    assert lines[0].split() == ["what", "found", "wanted"]
    assert sum(line.endswith("warning") for line in lines) == 1
    assert any(line.startswith("memory: add swap") for line in lines)
    raw = to_json(inspection)
    assert raw["target"] == "jetson-orin-nano" and {each["level"] for each in raw["findings"]} == {"fine", "warning"}


def test_an_unknown_target_is_told():
    with pytest.raises(UsageError, match="no target 'jetson-nano'"):
        inspect_device("jetson-nano")


def test_it_needs_nothing_but_the_standard_library():
    code = (
        "import sys\n"
        "class Blocker:\n"
        "    allowed = {'edge_effdet'} | set(sys.stdlib_module_names)\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] not in self.allowed: raise ModuleNotFoundError(name)\n"
        "sys.meta_path.insert(0, Blocker())\n"
        "from edge_effdet.device.inspect import inspect_device\n"
        "print(inspect_device('x86-cpu').text())\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "architecture" in done.stdout
