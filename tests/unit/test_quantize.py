"""What is refused before anything is read, and which images calibration takes."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from edge_effdet.artifacts import Graph, ModelSpec
from edge_effdet.errors import DataError, GraphError, UsageError
from edge_effdet.quant.calibration import manifest_record
from edge_effdet.quant.stage import (
    CalibrationOptions,
    calibration_dataset,
    calibration_images_from,
    convert_to_fp16,
)

SPEC = ModelSpec("tiny", (64, 64), ("disc",), (1,))


def wrap(path, precision="fp32"):
    return Graph(path, SPEC, "optimized", precision, {}, {}, {}, "0" * 64)


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_a_graph_that_is_converted_already_is_refused(tmp_path, precision):
    with pytest.raises(GraphError, match=rf"tiny\.onnx is {precision} already; give the FP32 graph"):
        convert_to_fp16(wrap(tmp_path / "tiny.onnx", precision), tmp_path / "out.onnx")
    assert list(tmp_path.iterdir()) == []


def test_int8_is_never_calibrated_on_nothing(tmp_path):
    with pytest.raises(UsageError, match=r"INT8 needs real images.*`calibration_data`"):
        calibration_dataset(CalibrationOptions())
    with pytest.raises(DataError, match="There is no data at"):
        calibration_dataset(CalibrationOptions(calibration_data=tmp_path / "absent"))


def test_calibration_takes_the_train_split_and_the_letterbox(tiny_voc, tmp_path):
    options = CalibrationOptions(calibration_data=tiny_voc)
    images = calibration_images_from(calibration_dataset(options), options, wrap(tmp_path / "tiny.onnx"))
    assert [image.shape for image in images] == [(1, 3, 64, 64)] * 8
    assert all(image.dtype == np.uint8 for image in images)
    assert set(images.manifest) == {f"scene_{number:02}" for number in range(8)}


def test_a_manifest_names_the_images_and_is_refused_when_one_changed(tiny_voc, tmp_path):
    options = CalibrationOptions(calibration_data=tiny_voc)
    data, graph = calibration_dataset(options), wrap(tmp_path / "tiny.onnx")
    images = calibration_images_from(data, options, graph)
    path = tmp_path / "manifest.json"
    record = manifest_record(images, "tiny")
    path.write_text(json.dumps(record))
    named = replace(options, calibration_manifest=path)
    again = calibration_images_from(data, named, graph)
    assert (again.manifest, again.choice) == (images.manifest, "manifest")
    record["images"]["scene_03"] = "0" * 64
    path.write_text(json.dumps(record))
    with pytest.raises(DataError, match=r"scene_03.* is not the file that .*manifest\.json names"):
        calibration_images_from(data, named, graph)
    record["images"] = {"absent": "0" * 64}
    path.write_text(json.dumps(record))
    with pytest.raises(DataError, match="names the image absent, which the data does not have"):
        calibration_images_from(data, named, graph)
    path.write_text("[]")
    with pytest.raises(DataError, match="is no calibration manifest"):
        calibration_images_from(data, named, graph)
