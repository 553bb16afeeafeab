"""The golden check, by ``Detector.load``: an engine that was proven elsewhere is let in where it finds the same, and nowhere else."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_effdet.backends.base import LoadOptions
from edge_effdet.backends.onnxruntime import OnnxRuntimeRunner
from edge_effdet.data.base import match_classes
from edge_effdet.data.registry import read_dataset
from edge_effdet.graph.export import ExportOptions, export_network, load_source
from edge_effdet.models.zoo import create_network
from edge_effdet.quant.choose import load_calibration_images
from edge_effdet.quant.stage import QuantizeOptions, quantize_on_images
from edge_effdet.runtime.agreement import TOLERANCES
from tests.emulation.engines import write_engine

BCCD_CHECKPOINT = Path(__file__).parents[1] / "assets" / "bccd_lite0.safetensors"
BACKENDS = ("onnxruntime", "openvino")
SIZE = 128
"""Of lite0's input, in place of 320: emulation takes a hundred times as long."""

FP32_DISTANCE = 1e-3
"""Sums in another order."""


@pytest.mark.parametrize("processor", ["host", "nehalem", "haswell", "arm64"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_portable_engine_is_let_in_everywhere(small_answers: dict[str, Any], processor: str, backend: str):
    answer = small_answers[processor]["engines"][f"{backend}-7-bits"]
    assert answer["refusal"] == ""
    # The small detector is exact, so that nothing is left to rounding.
    assert answer["distance"] < FP32_DISTANCE


@pytest.mark.parametrize("processor", ["nehalem", "haswell"])
def test_an_engine_that_saturates_is_refused(small_answers: dict[str, Any], processor: str):
    answer = small_answers[processor]["engines"]["openvino-8-bits"]
    assert answer["distance"] > 2 * TOLERANCES["int8"]
    assert "finds other objects on this machine" in answer["refusal"]
    assert "INT8 sums saturate" in answer["refusal"]


def test_the_same_engine_is_let_in_on_arm(small_answers: dict[str, Any]):
    assert small_answers["arm64"]["engines"]["openvino-8-bits"]["refusal"] == ""


def test_a_machine_that_computes_wrongly_is_refused(small_answers: dict[str, Any]):
    engines = small_answers["arm64-wrong"]["engines"]
    for name in ("openvino-7-bits", "openvino-8-bits"):
        assert "finds other objects on this machine" in engines[name]["refusal"]
        # It is no matter of weights there.
        assert "saturate" not in engines[name]["refusal"]
    # Only OpenVINO's kernels are computed wrongly.
    assert engines["onnxruntime-7-bits"]["refusal"] == ""


@pytest.fixture(scope="session")
def lite0_engines(bccd: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """lite0 for blood cells in FP32 and in INT8 of 7 bits for both backends, and of 8 bits for OpenVINO, with an image."""
    folder, graphs = tmp_path_factory.mktemp("lite0"), tmp_path_factory.mktemp("graphs")
    trained, spec, parents = load_source(BCCD_CHECKPOINT, None)
    spec = replace(spec, image_size=(SIZE, SIZE))
    network = create_network(spec).eval()
    network.load_state_dict(trained.state_dict())
    graph = export_network(network, spec, parents, graphs / "fp32.onnx", ExportOptions()).graph
    dataset = match_classes(read_dataset(bccd), spec)
    images = load_calibration_images(dataset.splits["train"], spec, 8, seed=0)
    pictures = [np.ascontiguousarray(image[0].transpose(1, 2, 0)) for image in images.first(3)]
    np.save(folder / "images.npy", pictures[0].transpose(2, 0, 1)[None])
    built = {"fp32": graph}
    for bits, codes in ((7, 63), (8, 127)):
        options = QuantizeOptions(weight_codes=codes)
        built[f"{bits}-bits"] = quantize_on_images(graph, images, options, graphs / f"{bits}-bits.onnx")
    for name, each in built.items():
        # It is exact on every processor, as test_small_network holds.
        with OnnxRuntimeRunner(each.path, LoadOptions()) as exact:
            for backend in BACKENDS if name != "8-bits" else ("openvino",):
                write_engine(each, backend, folder / f"{backend}-{name}.onnx", exact, pictures)
    return folder


Ask = Callable[..., dict[str, Any]]


@pytest.fixture
def ask(visit: Callable[..., dict[str, Any]], lite0_engines: Path, tmp_path: Path) -> Ask:
    """``ask(processor, *names)``: what these engines of lite0 find there."""

    def run(processor: str, *names: str) -> dict[str, Any]:
        folder = tmp_path / "chosen"
        folder.mkdir()
        shutil.copy(lite0_engines / "images.npy", folder)
        for name in names:
            for suffix in (".onnx", ".onnx.json"):
                shutil.copy(lite0_engines / f"{name}{suffix}", folder)
        return visit(processor, folder)["engines"]

    return run


@pytest.mark.slow
@pytest.mark.data
@pytest.mark.parametrize("processor", ["host", "nehalem", "haswell", "arm64"])
def test_lite0_is_let_in_everywhere(ask: Ask, processor: str):
    answers = ask(processor, *(f"{backend}-{kind}" for backend in BACKENDS for kind in ("fp32", "7-bits")))
    assert {name: answer["refusal"] for name, answer in answers.items()} == dict.fromkeys(answers, "")
    for backend in BACKENDS:
        assert answers[f"{backend}-fp32"]["distance"] < FP32_DISTANCE


@pytest.mark.slow
@pytest.mark.data
@pytest.mark.parametrize("processor", ["nehalem", "haswell"])
def test_lite0_with_8_bits_is_refused_where_it_saturates(ask: Ask, processor: str):
    (answer,) = ask(processor, "openvino-8-bits").values()
    assert "INT8 sums saturate" in answer["refusal"]
    assert answer["distance"] > 2 * TOLERANCES["int8"]


@pytest.mark.slow
@pytest.mark.data
def test_lite0_with_8_bits_is_let_in_on_arm(ask: Ask):
    (answer,) = ask("arm64", "openvino-8-bits").values()
    assert answer["refusal"] == ""


@pytest.mark.slow
@pytest.mark.data
def test_lite0_is_refused_where_a_machine_computes_wrongly(ask: Ask):
    (answer,) = ask("arm64-wrong", "openvino-7-bits").values()
    assert "finds other objects on this machine" in answer["refusal"]
