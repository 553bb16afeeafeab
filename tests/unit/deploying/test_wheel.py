"""The wheel of the device side: what is in it, that it installs, and that what it runs needs nothing of the host."""

from __future__ import annotations

import ast
import base64
import csv
import hashlib
import importlib.util
import json
import os
import shutil
import stat
import subprocess
import sys
import sysconfig
import zipfile
from email.parser import Parser
from importlib import metadata
from pathlib import Path

import pytest

import edge_effdet
from edge_effdet.deploying import wheel as module
from edge_effdet.deploying.wheel import EXTRAS, PARTS, requirements_of, write_device_wheel
from edge_effdet.errors import InputError
from tests.deploying import find_python

VERSION = metadata.version("edge-effdet")
INFO = f"edge_effdet-{VERSION}.dist-info"
WITH_NUMPY = tuple(f"edge_effdet.device.{name}" for name in ("engine", "service.loop", "service.watched"))
"""Modules of the device's room that run in the installed environment."""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_device_wheel(tmp_path_factory.mktemp("wheel") / "Räder 1")


@pytest.fixture(scope="module")
def names(wheel: Path) -> list[str]:
    with zipfile.ZipFile(wheel) as archive:
        return archive.namelist()


def test_its_name_is_that_of_a_wheel(wheel: Path):
    assert wheel.name == f"edge_effdet-{VERSION}-py3-none-any.whl"
    assert [path.name for path in wheel.parent.iterdir()] == [wheel.name]


def test_what_is_in_it(names: list[str]):
    parts = {name.split("/")[1] for name in names if name.startswith("edge_effdet/")}
    assert parts == set(PARTS)
    assert {name.split("/")[0] for name in names} == {"edge_effdet", INFO}
    assert {f"{INFO}/METADATA", f"{INFO}/WHEEL", f"{INFO}/RECORD", f"{INFO}/licenses/LICENSE"} <= set(names)
    assert {
        "edge_effdet/device/manifest.py",
        "edge_effdet/runtime/detector.py",
        "edge_effdet/backends/tensorrt/rtx.py",
    } <= set(names)
    assert not [name for name in names if "__pycache__" in name or name.endswith((".pyc", ".safetensors"))]
    # The specification recommends the metadata last.
    assert [name.startswith(INFO) for name in names] == sorted(name.startswith(INFO) for name in names)


def test_it_is_small(wheel: Path):
    assert wheel.stat().st_size < 1_000_000


def test_the_same_package_gives_the_same_bytes(wheel: Path, tmp_path: Path):
    assert write_device_wheel(tmp_path).read_bytes() == wheel.read_bytes()


def test_nothing_tells_when_and_where_it_was_written(wheel: Path):
    with zipfile.ZipFile(wheel) as archive:
        for entry in archive.infolist():
            assert entry.date_time == (1980, 1, 1, 0, 0, 0)
            assert stat.S_IMODE(entry.external_attr >> 16) == 0o644


def test_the_record_is_right(wheel: Path, names: list[str]):
    with zipfile.ZipFile(wheel) as archive:
        rows = list(csv.reader(archive.read(f"{INFO}/RECORD").decode().splitlines()))
        assert [row[0] for row in rows] == [
            *sorted(name for name in names if not name.endswith("/RECORD")),
            f"{INFO}/RECORD",
        ]
        for name, digest, size in rows[:-1]:
            content = archive.read(name)
            assert (
                digest == "sha256=" + base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
            )
            assert int(size) == len(content)
        assert rows[-1] == [f"{INFO}/RECORD", "", ""]


def test_its_metadata(wheel: Path):
    with zipfile.ZipFile(wheel) as archive:
        found = Parser().parsestr(archive.read(f"{INFO}/METADATA").decode())
        license_text = archive.read(f"{INFO}/licenses/LICENSE").decode()
    own = metadata.metadata("edge-effdet")
    for name in ("Name", "Version", "Requires-Python"):
        assert found[name] == own[name]
    # Without the photographs, which are under MIT.
    assert (own["License-Expression"], found["License-Expression"]) == ("Apache-2.0 AND MIT", "Apache-2.0")
    assert sorted(found.get_all("Provides-Extra") or []) == sorted(EXTRAS)
    requires = found.get_all("Requires-Dist") or []
    assert sorted(text for text in requires if "extra" not in text) == ["numpy>=1.26", "pillow>=10.3"]
    assert "onnxruntime>=1.19; extra == 'ort'" in requires
    assert not [text for text in requires if text.startswith(("torch", "onnx>", "pytest", "effdet"))]
    assert "Apache License" in license_text
    assert found["Description-Content-Type"] == "text/markdown"
    assert found.get_payload().startswith("The part of edge_effdet that a device runs")


def imports_of(source: str) -> set[str]:
    """The modules of the package that a file imports, anywhere in it, but for what type checkers alone read."""
    tree = ast.parse(source)
    typed = [node for node in ast.walk(tree) if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    skipped = {id(inner) for block in typed for inner in ast.walk(block)}
    found = set()
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            found |= {each.name for each in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return {name for name in found if name.split(".")[0] == "edge_effdet"}


def test_nothing_in_it_imports_what_is_not_in_it(wheel: Path, names: list[str]):
    """Imports inside functions too, which fail on the device at the worst time."""
    missing = {}
    with zipfile.ZipFile(wheel) as archive:
        for name in names:
            if name.endswith(".py"):
                for wanted in imports_of(archive.read(name).decode()):
                    path = wanted.replace(".", "/")
                    if f"{path}.py" not in names and f"{path}/__init__.py" not in names:
                        missing[name] = wanted
    assert missing == {}


def test_an_import_of_the_host_would_be_noticed():
    assert imports_of("def f():\n    from edge_effdet.quant.stage import quantize_graph\n") == {
        "edge_effdet.quant.stage"
    }
    assert imports_of("if TYPE_CHECKING:\n    from edge_effdet.quant.stage import quantize_graph\n") == set()


def test_requirements_of_an_extra():
    assert sorted(requirements_of("ort")) == ["numpy>=1.26", "onnxruntime>=1.19", "pillow>=10.3"]
    assert {"numpy>=1.26", "pycuda>=2024.1", "tensorrt>=10.3"} <= set(requirements_of("tensorrt"))


def test_markers_stay_without_that_of_the_extra(monkeypatch: pytest.MonkeyPatch):
    given = [
        "a>=1; (platform_machine == 'x86_64') and extra == 'x'",
        "b; python_version < '3.11' and extra == 'x'",
        'c; extra == "x"',
        "d; sys_platform == 'linux'",
        "e",
        "f; extra == 'y'",
    ]
    monkeypatch.setattr(module.metadata, "requires", lambda name: given)
    assert requirements_of("x") == [
        "a>=1; (platform_machine == 'x86_64')", "b; python_version < '3.11'", "c", "d; sys_platform == 'linux'", "e",
    ]  # fmt: skip


def test_a_package_that_is_not_installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(module, "_DISTRIBUTION", "edge-effdet-that-is-not-there")
    with pytest.raises(InputError, match="is not installed"):
        write_device_wheel(tmp_path)
    with pytest.raises(InputError, match="is not installed"):
        requirements_of("ort")
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of a fresh environment that has the wheel, and NumPy and Pillow of this one."""
    root = tmp_path_factory.mktemp("venv")
    folder = root / "Umgebung 1"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    found = folder / "bin" / "python"
    (site,) = (folder / "lib").glob("python*/site-packages")
    given = root / "given"
    given.mkdir()
    own = Path(sysconfig.get_path("purelib"))
    for path in own.iterdir():
        if path.name.lower().split("-")[0].split(".")[0] in ("numpy", "pil", "pillow"):
            (given / path.name).symlink_to(path)
    (site / "given.pth").write_text(f"{given}\n")
    command = [sys.executable, "-m", "pip", "--python", str(found), "install", "--quiet", "--no-index", str(wheel)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return found


def run(python: Path, *arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run([str(python), *arguments], capture_output=True, text=True, cwd=python.parent, env=environment)
    assert done.returncode == code, done.stderr
    return done


def test_it_installs_without_an_index_and_runs(python: Path):
    place = run(python, "-c", "import edge_effdet; print(edge_effdet.__file__)").stdout.strip()
    assert Path(place).is_relative_to(python.parents[1])
    for name in ("edge_effdet.detect", "edge_effdet.device"):
        assert "usage:" in run(python, "-m", name, "--help").stdout
    assert run(python, "-m", "edge_effdet", "--version").stdout.strip() == f"edge-effdet {VERSION}"


def test_verbs_of_the_host_are_refused_in_a_sentence(python: Path):
    listed = run(python, "-m", "edge_effdet", "--help").stdout
    assert "detect" in listed and "quantize" not in listed
    for verb in ("export", "build-engine", "data"):
        said = run(python, "-m", "edge_effdet", verb, "--help", code=2)
        assert (
            said.stderr
            == f"error: {verb} is not in the part of edge-effdet that a device has; run it where the whole package is installed.\n"
        )
    assert "the nearest that it has" in run(python, "-m", "edge_effdet", "exprot", code=2).stderr


def test_public_names_of_the_host_are_refused_in_a_sentence(python: Path):
    code = (
        "import edge_effdet\n"
        "print(edge_effdet.Detector.__name__, edge_effdet.Bundle.__name__)\n"
        "try:\n    from edge_effdet import export_checkpoint\n"
        "except ImportError as error:\n    print(error)\n"
    )
    first, second = run(python, "-c", code).stdout.splitlines()
    assert first == "Detector Bundle"
    assert second.startswith("export_checkpoint is not in the part of edge_effdet that a device has")


IMPORTS = """
import importlib, json, pkgutil, sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] not in {"edge_effdet", *sys.stdlib_module_names}:
            raise ModuleNotFoundError(f"No module named {name!r} (blocked)", name=name)

sys.meta_path.insert(0, Blocker())
sys.path.insert(0, sys.argv[1])
import edge_effdet.device
names = [found.name for found in pkgutil.walk_packages(edge_effdet.device.__path__, "edge_effdet.device.")]
failed = {}
for name in names:
    if not name.endswith("__main__"):
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            failed[name] = str(error)
print(json.dumps([edge_effdet.__file__, edge_effdet.__version__, names, failed]))
"""


@pytest.mark.parametrize("version", ["this", "3.10", "3.12", "3.13"])
def test_the_devices_modules_import_out_of_the_wheel_with_the_standard_library_alone(wheel: Path, version: str):
    """As they are before anything is installed, on each Python that a device may have."""
    interpreter = Path(sys.executable) if version == "this" else find_python(version)
    if interpreter is None:
        pytest.skip(f"no Python {version} here")
    place, version, names, failed = json.loads(run(interpreter, "-I", "-c", IMPORTS, str(wheel)).stdout)
    assert (place, version) == (str(wheel / "edge_effdet" / "__init__.py"), VERSION)
    assert {"edge_effdet.device.manifest", "edge_effdet.device.signature", "edge_effdet.device.targets"} <= set(names)
    assert set(failed) <= set(WITH_NUMPY)
    assert all("numpy" in why or "PIL" in why for why in failed.values())


def test_what_editors_and_python_leave_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    root = tmp_path / "edge_effdet"
    source = Path(edge_effdet.__file__).parent
    for part in PARTS:
        if (source / part).is_dir():
            shutil.copytree(source / part, root / part, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            root.mkdir(exist_ok=True)
            shutil.copy(source / part, root / part)
    monkeypatch.setattr(edge_effdet, "__file__", str(root / "__init__.py"))
    clean = write_device_wheel(tmp_path / "clean").read_bytes()
    for name in ("device/__pycache__/x.pyc", "device/.manifest.py.swp", "quickstart/more.safetensors", "train.py"):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_bytes(b"")
    assert write_device_wheel(tmp_path / "dirty").read_bytes() == clean
    assert importlib.util.find_spec("edge_effdet.train")
