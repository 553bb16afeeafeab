"""The public names: each is there, loads nothing before it is used, and has a type for whoever uses it."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import edge_effdet


@pytest.mark.parametrize("name", edge_effdet.__all__)
def test_every_public_name_is_there(name: str):
    assert getattr(edge_effdet, name).__doc__


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'toaster'"):
        _ = edge_effdet.toaster


def test_importing_the_package_loads_nothing_heavy():
    code = "import sys, edge_effdet; print([name for name in ('torch', 'onnx', 'numpy', 'PIL') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_what_type_checkers_read_is_what_runs():
    """The names are imported when they are used, so that the table of their homes stands in the file twice."""
    tree = ast.parse(Path(edge_effdet.__file__).read_text(encoding="utf-8"))
    (block,) = (node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
    homes = {}
    for statement in block.body:
        assert isinstance(statement, ast.ImportFrom) and statement.module
        for alias in statement.names:
            # Only a name that is imported as itself is public to a type checker.
            assert alias.asname == alias.name
            homes[alias.name] = statement.module.removeprefix("edge_effdet.")
    assert homes == edge_effdet._HOMES
    assert sorted(edge_effdet.__all__) == sorted([*homes, "__version__"])


USER_SCRIPT = """
from edge_effdet import (
    BuildConfig, Detector, EvaluateConfig, ExportConfig, PredictConfig, QuantizeConfig, TrainConfig, build, evaluate_detector,
    export_checkpoint, predict_files, quantize_graph, train_detector,
)

engine = build("best.safetensors", BuildConfig(calibration_data="bccd", output="engines"))
reveal_type(engine)
reveal_type(Detector.load("x")("y.jpg"))
reveal_type(Detector.load("x")(["y.jpg"]))
reveal_type(Detector.load("x").spec.class_names)
best = train_detector("bccd", "runs/bccd", TrainConfig(epochs=1))
reveal_type(best)
reveal_type(quantize_graph(export_checkpoint(best, "x.onnx", ExportConfig()).graph, "y", QuantizeConfig(precision="int8")))
reveal_type(evaluate_detector(engine, "bccd", EvaluateConfig()).metrics.AP)
reveal_type(evaluate_detector(["a.safetensors", best], "bccd", EvaluateConfig(tta="all")).metrics.AP)
reveal_type(predict_files(best, "photos", PredictConfig()).detections)
BuildConfig(precission="int8")
"""


def test_a_users_script_has_types(tmp_path: Path):
    pytest.importorskip("pyright")
    assert (Path(edge_effdet.__file__).parent / "py.typed").is_file()
    (tmp_path / "script.py").write_text(USER_SCRIPT)
    (tmp_path / "pyrightconfig.json").write_text('{"typeCheckingMode": "strict"}')
    done = subprocess.run(
        [sys.executable, "-m", "pyright", "--outputjson", "--pythonpath", sys.executable, "-p", str(tmp_path)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYRIGHT_PYTHON_IGNORE_WARNINGS": "1"},
    )
    said = json.loads(done.stdout)["generalDiagnostics"]
    revealed = [item["message"] for item in said if item["severity"] == "information"]
    assert [text.rsplit(" is ", 1)[1].strip('"') for text in revealed] == [
        "Engine",
        "Detections",
        "list[Detections]",
        "tuple[str, ...]",
        "Checkpoint",
        "Graph",
        "float",
        "float",
        "Mapping[Path, Detections]",
    ]
    # That a mistake is noticed shows that the names are known, since on Any everything is allowed.
    errors = [item["message"] for item in said if item["severity"] == "error"]
    assert len(errors) == 1 and "precission" in errors[0]
