"""The device has NumPy, Pillow and one backend: what runs there imports nothing else, and every ``--help`` works."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

DEVICE_SIDE = (
    "edge_effdet",
    "edge_effdet.__main__",
    "edge_effdet.artifacts",
    "edge_effdet.backends.arithmetic",
    "edge_effdet.backends.base",
    "edge_effdet.backends.cores",
    "edge_effdet.backends.tensorrt.cuda",
    "edge_effdet.backends.fingerprint",
    "edge_effdet.backends.onnxruntime",
    "edge_effdet.backends.onnxruntime_cuda",
    "edge_effdet.backends.openvino",
    "edge_effdet.backends.openvino_cache",
    "edge_effdet.backends.runtime_cache",
    "edge_effdet.backends.tensorrt.builder",
    "edge_effdet.backends.tensorrt.rtx",
    "edge_effdet.cli",
    "edge_effdet.evaluation.confusion",
    "edge_effdet.detect",
    "edge_effdet.runtime.detector",
    "edge_effdet.runtime.dicom",
    "edge_effdet.runtime.drawing",
    "edge_effdet.evaluation.ensemble",
    "edge_effdet.errors",
    "edge_effdet.evaluate",
    "edge_effdet.runtime.feeds",
    "edge_effdet.building.gate",
    "edge_effdet.runtime.golden",
    "edge_effdet.runtime.images",
    "edge_effdet.evaluation.metrics",
    "edge_effdet.runtime.nms",
    "edge_effdet.runtime.pipeline",
    "edge_effdet.runtime.postprocess",
    "edge_effdet.predict",
    "edge_effdet.runtime.preprocess",
    "edge_effdet.runtime.sinks",
    "edge_effdet.runtime.sources",
    "edge_effdet.verify",
)
HOST_ONLY = (
    "edge_effdet.models.runner",
    "edge_effdet.graph.",
    "edge_effdet.models.bifpn",
    "edge_effdet.models.detector",
    "edge_effdet.quant.account",
    "edge_effdet.quant.equalize",
    "edge_effdet.quant.int8",
    "edge_effdet.quant.layer_report",
    "edge_effdet.quant.layers",
    "edge_effdet.quant.optimized_model",
    "edge_effdet.quant.patches",
    "edge_effdet.quant.pixels",
    "edge_effdet.quant.precision",
    "edge_effdet.quant.probe",
    "edge_effdet.quant.proof",
    "edge_effdet.quant.search",
    "edge_effdet.quant.statistics",
    "edge_effdet.quant.table",
    "edge_effdet.quant.tensor_errors",
    "edge_effdet.training.",
)
"""Prefixes of the modules whose every line is about torch or ONNX, so that they import it at their top."""

HEAVY = (
    "torch", "torchvision", "timm", "effdet", "onnx", "onnx_ir", "onnxruntime", "openvino", "tensorrt", "pycuda", "pydicom", "av",
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
    assert set(DEVICE_SIDE) <= set(names)
    surprising = {name: why for name, why in failed.items() if not name.startswith(HOST_ONLY)}
    assert surprising == {}
    assert all("blocked" in why for why in failed.values())


@pytest.mark.parametrize(
    "verb",
    [
        "",
        "train",
        "export",
        "quantize",
        "build_engine",
        "detect",
        "evaluate",
        "predict",
        "data.__main__",
        "data.synthetic",
    ],
)
def test_help_works_with_numpy_and_pillow_alone(verb):
    code = (
        BLOCK
        + """
main = importlib.import_module("edge_effdet." + (sys.argv[1] or "__main__")).main
try:
    code = main(["--help"])
except SystemExit as ended:
    code = ended.code
sys.exit(code)
"""
    )
    text = run_fresh(code, verb)
    assert "usage:" in text
    assert "example:" in text or not verb
