"""Which wheels of a bundle a Python on a machine takes: by pip's own rules, which the package ``packaging`` has."""

from __future__ import annotations

import itertools
import platform
import sys
import zipfile
from pathlib import Path

import pytest
from packaging.specifiers import SpecifierSet
from packaging.tags import compatible_tags, cpython_tags, parse_tag

from edge_effdet.device.wheels import WheelHost, needed_wheels, own_glibc, pythons_of, read_wheel, suits
from tests.bundles import make_manifest
from tests.deploying import make_wheel

NAMES = [
    f"{tag}-{system}"
    for tag, system in itertools.product(
        ("cp310-cp310", "cp311-cp311", "cp312-cp312", "cp39-abi3", "cp312-abi3", "py3-none", "py2.py3-none", "py2-none", "cp313-cp313t",
         "cp311-none", "py311-none", "pp310-pypy310_pp73"),
        ("any", "linux_x86_64", "manylinux2014_x86_64", "manylinux_2_17_x86_64.manylinux2014_x86_64", "manylinux_2_28_aarch64",
         "manylinux_2_39_x86_64", "manylinux1_x86_64", "musllinux_1_2_x86_64", "win_amd64"),
    )
]  # fmt: skip


def pip_takes(name: str, machine: WheelHost) -> bool:
    """Whether a tag is among those that packaging has for a CPython there."""
    systems = [f"linux_{machine.processor}"]
    systems += [f"manylinux_2_{minor}_{machine.processor}" for minor in range(5, (machine.glibc or 99) + 1)]
    systems += [
        f"{old}_{machine.processor}"
        for old, least in (("manylinux1", 5), ("manylinux2010", 12), ("manylinux2014", 17))
        if least <= (machine.glibc or 99)
    ]
    version = tuple(map(int, machine.python.split(".")))
    known = {
        *cpython_tags(version, platforms=systems),
        *compatible_tags(version, interpreter=f"cp{version[0]}{version[1]}", platforms=systems),
    }
    return not known.isdisjoint(parse_tag(name))


@pytest.mark.parametrize("python", ["3.10", "3.11", "3.12"])
@pytest.mark.parametrize(("processor", "glibc"), [("x86_64", 36), ("aarch64", 35), ("x86_64", 17), ("x86_64", None)])
def test_tags_are_read_as_pip_reads_them(tmp_path: Path, python: str, processor: str, glibc: int | None):
    machine = WheelHost(python, processor, glibc)
    for name in NAMES:
        wheel = read_wheel(tmp_path / f"demo_package-1.0-{name}.whl")
        assert wheel is not None and (wheel.name, wheel.version) == ("demo-package", "1.0")
        assert suits(wheel, machine) == pip_takes(name, machine), (name, machine)


@pytest.mark.parametrize(
    "wanted",
    [">=3.10", ">=3.11", ">=3", ">=3.10,<3.12", "<3.11", "<4", ">3.9", "!=3.10.*,>=3.9", "==3.*", "==3.11.*", "~=3.10", ">=3.9, !=3.9.7", "<=3.12"],
)  # fmt: skip
def test_versions_of_python_are_read_as_pip_reads_them(tmp_path: Path, wanted: str):
    path = make_wheel(tmp_path, "demo", "1.0")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(
            "Demo-1.0.dist-info/METADATA", f"Metadata-Version: 2.1\nName: demo\nRequires-Python: {wanted}\n\nText.\n"
        )
    wheel = read_wheel(path)
    assert wheel is not None
    for python in ("3.10", "3.11", "3.12"):
        assert suits(wheel, WheelHost(python, "x86_64", 36)) == SpecifierSet(wanted).contains(f"{python}.4"), python


def test_what_is_no_wheel_is_none(tmp_path: Path):
    for name in ("pycuda-2025.1.tar.gz", "a.whl", "a-1-py3.whl"):
        assert read_wheel(tmp_path / name) is None
    with_build = read_wheel(tmp_path / "a-1-2b-py3-none-any.whl")
    assert with_build is not None and (with_build.pythons, with_build.systems) == (("py3",), ("any",))


def test_this_machine_takes_what_is_made_for_it(tmp_path: Path):
    tag = f"cp{sys.version_info.major}{sys.version_info.minor}"
    wheel = read_wheel(tmp_path / f"demo-1.0-{tag}-{tag}-manylinux_2_5_{platform.machine()}.whl")
    host = WheelHost(f"3.{sys.version_info.minor}", platform.machine(), own_glibc())
    assert wheel is not None and suits(wheel, host)


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """The packages of a bundle for two Pythons, one of which is compiled of its source."""
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    make_wheel(wheels, "edge_effdet", "0.1.0")
    for python, version in (("cp310", "2.2.6"), ("cp312", "2.4.6")):
        make_wheel(wheels, "numpy", version, tag=f"{python}-{python}-manylinux2014_aarch64")
        make_wheel(wheels, "pure_python", version)
    make_wheel(wheels, "cuda_bindings", "13.1", tag="cp312-cp312-manylinux2014_aarch64")
    make_wheel(wheels, "setuptools", "99")
    (wheels / "pycuda-2026.1.tar.gz").touch()
    lines = ["# for a board"]
    lines += [
        f'{name}=={version} ; python_version == "{python}" \\\n    --hash=sha256:00'
        for name in ("numpy", "Pure.Python")
        for python, version in (("3.10", "2.2.6"), ("3.12", "2.4.6"))
    ]
    lines += [
        'cuda-bindings==13.1 ; python_version == "3.12" \\\n    --hash=sha256:00',
        "pycuda==2026.1 --hash=sha256:00",
    ]
    (tmp_path / "requirements.txt").write_text("\n".join(lines))
    return tmp_path


def test_what_pip_installs_of_a_bundle(bundle: Path):
    manifest = make_manifest(complete=True)
    found = {name: [wheel.path.name for wheel in wheels] for name, wheels in needed_wheels(bundle, manifest, "3.10")}
    assert found == {
        "edge-effdet": ["edge_effdet-0.1.0-py3-none-any.whl"],
        "numpy": ["numpy-2.2.6-cp310-cp310-manylinux2014_aarch64.whl"],
        "pure-python": ["pure_python-2.2.6-py3-none-any.whl"],
    }
    names = [name for name, _ in needed_wheels(bundle, manifest, "3.12")]
    assert names == ["edge-effdet", "numpy", "pure-python", "cuda-bindings"]
    assert [name for name, _ in needed_wheels(bundle, make_manifest(complete=False), "3.10")] == ["edge-effdet"]
    assert pythons_of(bundle / "wheels") == ["3.10", "3.12"]


def test_a_package_that_the_bundle_lacks_has_no_wheel(bundle: Path):
    for path in (bundle / "wheels").glob("numpy-*"):
        path.unlink()
    assert dict(needed_wheels(bundle, make_manifest(complete=True), "3.10"))["numpy"] == []
