"""The inputs of the verbs: a small data set, pictures, a video, a checkpoint, its graph, and engines of three convolutions.

They are written where networks are small (``tests.networks.small_networks``), as in ``server.py``.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from edge_effdet.backends.base import CompileOptions
from edge_effdet.building.engine import compile_engine
from edge_effdet.graph.export import ExportOptions, export_network
from edge_effdet.models.checkpoint import save_checkpoint
from edge_effdet.models.zoo import model_spec
from tests.emulation.engines import write_engine
from tests.emulation.small_detector import ExactRunner, make_pictures, write_small_detector
from tests.networks import random_network
from tests.records import write_record
from tests.scenes import CLASSES, write_scenes
from tests.unit.runtime.test_sources import write_video

SIDE = 64


def write_inputs(folder: Path) -> None:
    """Write into an empty folder:

    ``data``, a data set in COCO's form; ``pictures`` and ``clip.mp4``, to look at; ``m.safetensors``, a checkpoint of random weights for that data;
    ``built/m.fp32.onnx``, an engine of it with its graph in ``built/graphs``; ``small.onnxruntime.onnx`` and ``small.openvino.onnx``, engines that were
    proven on another processor, so that each first load checks them and keeps the answer.
    """
    write_scenes(folder / "data", {"train": 8, "val": 2, "test": 2}, seed=4, side=SIDE)
    shutil.copytree(folder / "data" / "test", folder / "pictures")
    write_video(folder / "clip.mp4", "mpeg4", frames=4)
    spec = model_spec("tf_efficientdet_lite0", CLASSES, None, (SIDE, SIDE))
    network = random_network(spec)
    parents = {"checkpoint": save_checkpoint(folder / "m.safetensors", network.state_dict(), spec, {}).sha256}
    (folder / "built" / "graphs").mkdir(parents=True)
    graph = export_network(network, spec, parents, folder / "built" / "graphs" / "m.fp32.onnx", ExportOptions()).graph
    write_record(compile_engine(graph, "onnxruntime", CompileOptions(), folder / "built" / "m.fp32.onnx"))
    small = write_small_detector(folder / "small.onnx", bits=7)
    for backend in ("onnxruntime", "openvino"):
        write_engine(small, backend, folder / f"small.{backend}.onnx", ExactRunner(), make_pictures())
    small.path.unlink()
