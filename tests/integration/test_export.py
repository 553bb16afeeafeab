"""The verb ``export``: what it writes, and what it says of the graph."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from PIL import Image

from edge_effdet import export
from edge_effdet.backends.base import LoadOptions
from edge_effdet.backends.onnxruntime import OnnxRuntimeRunner
from edge_effdet.data.registry import read_dataset
from edge_effdet.graph.model import load_graph
from edge_effdet.graph.targets import TARGETS
from edge_effdet.quant.choose import load_calibration_images
from edge_effdet.quant.proof import prove_precision
from edge_effdet.quant.stage import QuantizeOptions, quantize_on_images
from tests import tolerances

MODEL = "--model tf_efficientdet_lite0 --image-size 128x160 --classes disc --raw"


def count_convolutions(path: Path) -> int:
    return sum(node.op_type == "Conv" for node in onnx.load(path).graph.node)


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The graph with its pairs kept, and what ``--explain`` printed of it."""
    path = tmp_path_factory.mktemp("kept") / "keep.onnx"
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        assert export.main(f"{MODEL} --output {path} --explain".split()) == 0
    return path, said.getvalue()


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("dense") / "dense.onnx"
    assert export.main(f"{MODEL} --output {path} --fuse-separable dense".split()) == 0
    return path


@pytest.fixture(scope="module")
def chosen(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    """Decided by the model of a GPU that is not here, and what ``--json`` printed."""
    path = tmp_path_factory.mktemp("auto") / "auto.onnx"
    said = io.StringIO()
    words = "--fuse-separable auto --fuse-target orin-nano-8gb --fuse-precision fp32 --json"
    with contextlib.redirect_stdout(said):
        assert export.main(f"{MODEL} --output {path} {words}".split()) == 0
    return path, json.loads(said.getvalue())


def test_auto_fuses_some_pairs_and_says_why_not_the_others(chosen: tuple[Path, dict]):
    _, said = chosen
    count = said["rewrites"]["fuse_separable"]
    assert 0 < count < 64
    refused = [why for rule, _, why in said["refused"] if rule == "fuse_separable"]
    assert count + len(refused) == 64
    assert all("us dense (model)" in why for why in refused)
    assert said["nodes_after"]["Conv"] == 182 - count


def test_fused_graphs_compute_the_same(kept: tuple[Path, str], dense: Path, chosen: tuple[Path, dict]):
    counts = [count_convolutions(path) for path in (kept[0], dense, chosen[0])]
    assert counts[:2] == [182, 182 - 64]
    images = np.random.default_rng(0).integers(0, 256, (1, 3, 128, 160), np.uint8)
    with OnnxRuntimeRunner(kept[0], LoadOptions()) as runner:
        expected = runner.run({"images": images})
    for path, convolutions in zip((dense, chosen[0]), counts[1:], strict=True):
        with OnnxRuntimeRunner(path, LoadOptions()) as runner:
            found = runner.run({"images": images})
        for name, tensor in expected.items():
            assert np.abs(found[name] - tensor).max() <= tolerances.HEAD_TENSOR * np.abs(tensor).max()
        # What a share of INT8 is counted by; what the exporter noted of its own machine is gone.
        noted = [entry.key for node in onnx.load(path).graph.node for entry in node.metadata_props]
        assert noted == ["edge_effdet.macs_before_fusion"] * (182 - convolutions)


def test_explain_prints_and_writes_the_report(kept: tuple[Path, str]):
    path, said = kept
    assert all(word in said for word in ("fold_batchnorm", "bifpn cell 0", "MACs", "traffic")), said
    assert max(map(len, said.splitlines()[:-2])) <= 120
    report = json.loads(path.with_name("keep.onnx.report.json").read_text())
    assert report["nodes"]["total"] < report["nodes_before"]["total"]
    assert sum(part["macs"] for part in report["parts"]) == report["total"]["macs"]
    with Image.open(path.with_name("keep.onnx.report.png")) as picture:
        assert picture.width > 1000


def test_an_unknown_target_is_refused_with_the_names(tmp_path: Path, capsys):
    with pytest.raises(SystemExit) as ended:
        export.main(f"{MODEL} --output {tmp_path / 'x.onnx'} --fuse-separable auto --fuse-target orin".split())
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert all(name in said for name in TARGETS)
    for words, why in (
        ("--fuse-separable auto", "name it with --fuse-target"),
        ("--fuse-target thor", "it was not asked for"),
        ("--fuse-separable dense --fuse-precision int8", "it was not asked for"),
    ):
        assert export.main(f"{MODEL} --output {tmp_path / 'x.onnx'} {words}".split()) == 2
        assert why in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_the_share_of_int8_is_counted_as_before_fusion(
    dense: Path, kept: tuple[Path, str], tiny_voc: Path, tmp_path: Path
):
    graph = load_graph(dense)
    images = load_calibration_images(read_dataset(tiny_voc).all_samples(), graph.spec, 8, seed=0)
    quantized = quantize_on_images(
        graph, images, QuantizeOptions(method="max", rounding="nearest"), tmp_path / "int8.onnx"
    )
    before, after = (prove_precision(ir.load(str(path))) for path in (kept[0], quantized.path))
    assert after.macs["int8"] == before.macs["fp32"] > 0
