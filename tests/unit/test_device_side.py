"""The device has NumPy, Pillow and one backend: what runs there imports nothing else, and every ``--help`` works."""

from __future__ import annotations

import importlib
import json
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

from edge_effdet.__main__ import VERBS, module_name
from tests.deploying import find_python

ROOT = Path(__file__).parents[2]


def modules_under(package: str) -> list[str]:
    """The package and all modules below it, by walking it, so that a new module is among them by itself."""
    path = importlib.import_module(package).__path__
    return [package, *(found.name for found in pkgutil.walk_packages(path, f"{package}."))]


DEVICE_PACKAGES = (
    "edge_effdet.runtime",
    "edge_effdet.backends",
    "edge_effdet.sending",
    "edge_effdet.device",
    "edge_effdet.evaluation",
    "edge_effdet.benchmarking",
)
DEVICE_VERBS = ("benchmark", "detect", "evaluate", "predict", "serve", "verify")
GROUND_FLOOR = ("errors", "signals", "artifacts", "options", "cli", "__main__")
DEVICE_SIDE = (
    "edge_effdet",
    *(f"edge_effdet.{name}" for name in (*GROUND_FLOOR, *DEVICE_VERBS)),
    *(name for package in DEVICE_PACKAGES for name in modules_under(package)),
)

HOST_PACKAGES = ("edge_effdet.graph.", "edge_effdet.models.", "edge_effdet.quant.", "edge_effdet.training.")
"""Their modules may import torch or ONNX at their top; those of them that a verb loads before it runs may not, which the tests of
``--help`` see to."""

LAZY_ON_THE_HOST = ("edge_effdet.models.checkpoint", "edge_effdet.models.pretrained", "edge_effdet.models.zoo")
"""No verb loads them before it runs, and still they import torch inside their functions alone: what they refuse, a wrong name or a
missing file, is to be told before torch is loaded."""

WEB_PACKAGES = ("edge_effdet.serving.",)
"""Their modules are made of routes, and import what answers HTTP at their top; the verb loads them when it has read its options."""

LAZY_FOR_THE_WEB = ("edge_effdet.serving.options",)
"""Read before that."""

HEAVY = (
    "torch", "torchvision", "timm", "effdet", "onnx", "onnx_ir", "onnxruntime", "openvino", "tensorrt", "pycuda", "pydicom", "pillow_heif", "av",
    "paho", "trackforge", "rclpy",
)  # fmt: skip

BLOCK = """
import importlib, json, pkgutil, sys

class Blocker:
    allowed = {"numpy", "PIL", "edge_effdet"} | set(sys.stdlib_module_names)

    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] not in self.allowed:
            raise ModuleNotFoundError(f"No module named {name!r} (blocked)", name=name)

sys.meta_path.insert(0, Blocker())
"""


def run_fresh(code, *arguments):
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_device_side_is_walked():
    """The list is worked out, so that a mistake in that could leave it empty."""
    assert {
        "edge_effdet.backends.tensorrt.cuda",
        "edge_effdet.backends.openvino",
        "edge_effdet.evaluation.metrics",
        "edge_effdet.runtime.dicom",
    } <= set(DEVICE_SIDE)
    assert len(DEVICE_SIDE) == len(set(DEVICE_SIDE)) > 40


def test_the_device_side_loads_no_heavy_package():
    code = (
        "import importlib, json, sys\n"
        "modules, heavy = map(json.loads, sys.argv[1:])\n"
        "for name in modules: importlib.import_module(name)\n"
        "print(json.dumps([name for name in heavy if name in sys.modules]))"
    )
    assert json.loads(run_fresh(code, json.dumps(DEVICE_SIDE), json.dumps(HEAVY))) == []


def test_the_blocker_blocks():
    code = BLOCK + "try:\n    import safetensors\nexcept ModuleNotFoundError as error:\n    print(error)\n"
    assert "blocked" in run_fresh(code)


def test_every_module_but_the_hosts_imports_with_numpy_and_pillow_alone():
    code = (
        BLOCK
        + """
import edge_effdet
failed = {}
names = ["edge_effdet", *(found.name for found in pkgutil.walk_packages(edge_effdet.__path__, "edge_effdet."))]
for name in names:
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        failed[name] = str(error)
print(json.dumps([names, failed]))
"""
    )
    names, failed = json.loads(run_fresh(code))
    assert {*DEVICE_SIDE, *LAZY_ON_THE_HOST} <= set(names)
    surprising = {
        name: why
        for name, why in failed.items()
        if not name.startswith((*HOST_PACKAGES, *WEB_PACKAGES))
        or name in (*DEVICE_SIDE, *LAZY_ON_THE_HOST, *LAZY_FOR_THE_WEB)
    }
    assert surprising == {}
    assert all("blocked" in why for why in failed.values())


@pytest.mark.parametrize("module", ["__main__", *map(module_name, VERBS)])
def test_help_works_with_numpy_and_pillow_alone(module):
    code = (
        BLOCK
        + """
main = importlib.import_module(sys.argv[1]).main
try:
    code = main(["--help"])
except SystemExit as ended:
    code = ended.code
sys.exit(code)
"""
    )
    text = run_fresh(code, f"edge_effdet.{module.removeprefix('edge_effdet.')}")
    assert "usage:" in text
    assert "example:" in text or module == "__main__"


def test_what_needs_no_package_is_imported_by_the_python_of_jetpack_6():
    """What Python 3.11 brought may fail where a module is imported already, as ``logging.StreamHandler[str]`` does."""
    python = find_python("3.10")
    if python is None:
        pytest.skip("there is no Python 3.10 here")
    names = ("edge_effdet.__main__", "edge_effdet.artifacts", "edge_effdet.cli", "edge_effdet.device.__main__")
    code = "import importlib, sys\nfor name in sys.argv[1:]:\n    importlib.import_module(name)\n"
    done = subprocess.run([python, "-c", code, *names], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
