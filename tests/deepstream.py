"""Compile the parser of a folder for DeepStream, and call it as nvinfer does, under the address and undefined-behaviour sanitizers."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from edge_effdet.artifacts import Size
from edge_effdet.runtime.postprocess import detections_from_outputs
from edge_effdet.runtime.preprocess import letterbox_size

HEADERS = Path(__file__).parent / "nvdsinfer"
FUNCTION = "NvDsInferParseEffDet"
FLAGS = ("-O1", "-g", "-Werror", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer")
FLOAT, HALF, INT32 = 0, 1, 3


@dataclass(frozen=True)
class Layer:
    """A layer as nvinfer describes it: without the batch axis. ``dims`` and ``kind`` may say something else than the array."""

    name: str
    array: np.ndarray | None
    kind: int
    dims: tuple[int, ...]

    @staticmethod
    def of(name: str, array: np.ndarray) -> Layer:
        return Layer(name, array, {"float32": FLOAT, "float16": HALF, "int32": INT32}[array.dtype.name], array.shape)

    def to_bytes(self) -> bytes:
        name, content = self.name.encode(), b"" if self.array is None else np.ascontiguousarray(self.array).tobytes()
        head = struct.pack("=I", len(name)) + name + struct.pack("=II", self.kind, len(self.dims))
        given = self.array is not None
        return head + struct.pack(f"={len(self.dims)}IIQ", *self.dims, given, len(content)) + content


@dataclass(frozen=True)
class Frame:
    """One call: the layers, the size of the network's input as height and width, and the threshold of each class."""

    layers: tuple[Layer, ...]
    size: tuple[int, int]
    thresholds: tuple[float, ...]
    classes: int | None = None

    @staticmethod
    def of(outputs: Mapping[str, np.ndarray], size: tuple[int, int], thresholds: Sequence[float]) -> Frame:
        """The outputs of one picture, without the batch axis."""
        return Frame(tuple(Layer.of(name, array) for name, array in outputs.items()), size, tuple(thresholds))

    def replaced(self, layer: str, /, **changes) -> Frame:
        """The frame with another description of one layer."""
        return replace(
            self, layers=tuple(replace(each, **changes) if each.name == layer else each for each in self.layers)
        )

    def to_bytes(self) -> bytes:
        classes = len(self.thresholds) if self.classes is None else self.classes
        head = struct.pack("=4I", self.size[1], self.size[0], classes, len(self.thresholds))
        body = b"".join(layer.to_bytes() for layer in self.layers)
        return head + struct.pack(f"={len(self.thresholds)}fI", *self.thresholds, len(self.layers)) + body


@dataclass(frozen=True)
class Objects:
    """What the parser gave for one frame, in its order."""

    understood: bool
    class_ids: np.ndarray
    boxes: np.ndarray
    """float32 [N, 4], left, top, width, height."""
    scores: np.ndarray
    rotations: np.ndarray


@dataclass(frozen=True)
class Parser:
    """A compiled library, and the program that calls it."""

    program: Path
    library: Path

    def __call__(self, frames: Sequence[Frame]) -> tuple[list[Objects], str]:
        """The objects of each frame, and what was written to stderr. Fails where a sanitizer found something."""
        done = subprocess.run(
            [str(self.program), str(self.library), FUNCTION],
            input=b"".join(frame.to_bytes() for frame in frames),
            capture_output=True,
            timeout=300,
            env={**os.environ, "ASAN_OPTIONS": "detect_leaks=1:abort_on_error=0"},
        )
        told = done.stderr.decode(errors="replace")
        assert done.returncode == 0, told[-4000:]
        content, at, found = done.stdout, 0, []
        for _ in frames:
            understood, count = struct.unpack_from("=II", content, at)
            rows = np.frombuffer(content, np.dtype([("class", "u4"), ("values", "f4", 6)]), count, at + 8)
            at += 8 + rows.nbytes
            values = rows["values"]
            found.append(Objects(bool(understood), rows["class"], values[:, :4], values[:, 4], values[:, 5]))
        assert at == len(content)
        return found, told


def compiler() -> str | None:
    """The C++ compiler, where there is one, and GNU make with it."""
    return shutil.which("g++") if shutil.which("make") else None


def build_parser(folder: Path, frame: tuple[int, int] = (0, 0), *more: str) -> Parser:
    """Build the parser of a folder with its own Makefile, and the program beside it.

    Args:
        folder: as ``write_deepstream`` made it.
        frame: width and height of the frames of nvstreammux.
        more: flags of the compiler besides ``FLAGS``.
    """
    flags = " ".join((*FLAGS, *more))
    # The headers stand where DeepStream's would be.
    place = folder / "installed" / "sources"
    place.mkdir(parents=True, exist_ok=True)
    if not (place / "includes").exists():
        (place / "includes").symlink_to(HEADERS)
    command = ["make", "-B", "-C", str(folder), "parser", f"FRAME_WIDTH={frame[0]}", f"FRAME_HEIGHT={frame[1]}"]
    _run([*command, f"CXXFLAGS={flags}", f"DEEPSTREAM={place.parent}", "CUDA=/nowhere"])
    program = folder / "call_parser"
    source = str(HEADERS / "call_parser.cpp")
    _run(["g++", "-std=c++17", "-Wall", "-Wextra", *flags.split(), f"-I{HEADERS}", source, "-o", str(program), "-ldl"])
    return Parser(program, folder / "libnvds_effdet.so")


def _run(command: Sequence[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def expected_objects(outputs: Mapping[str, np.ndarray], original: Size, size: Size, threshold: float) -> np.ndarray:
    """What the runtime finds in the outputs of one picture, in pixels of the network's input and without boxes that have no area.

    Args:
        outputs: boxes [K, 4], scores [K] and class ids [K].
        original: height and width of the picture.
        size: height and width of the network's input.
        threshold: the score from which a candidate counts.

    Returns:
        float64 [N, 6]: left, top, right, bottom, score and class, in the runtime's order.
    """
    boxes, scores, class_ids = (outputs[name] for name in ("boxes", "scores", "class_ids"))
    found = detections_from_outputs(boxes, scores, class_ids, original, size, threshold)
    scale = np.float32(letterbox_size(*original, size)[2])
    # Dividing by the scale and multiplying again would round, so the box is looked up among those that went in.
    clipped = np.clip(boxes, 0, np.array([original[1], original[0]] * 2, np.float32) * scale)
    scaled = (clipped / scale).astype(np.float32)
    rows = []
    for box, score, class_id in zip(found.boxes, found.scores, found.class_ids, strict=True):
        same = (scores == score) & (class_ids == class_id) & (scaled == box).all(axis=1)
        rows.append((*clipped[np.flatnonzero(same)[0]], score, class_id))
    table = np.array(rows, np.float64).reshape(-1, 6)
    return table[(table[:, 2] > table[:, 0]) & (table[:, 3] > table[:, 1])]


def assert_same(objects: Objects, expected: np.ndarray) -> None:
    """The parser found just these, in this order, to the bit."""
    assert objects.understood
    assert objects.class_ids.tolist() == expected[:, 5].tolist()
    assert objects.scores.tolist() == expected[:, 4].tolist()
    corners = expected[:, :4].astype(np.float32)
    np.testing.assert_array_equal(objects.boxes[:, :2], corners[:, :2])
    np.testing.assert_array_equal(objects.boxes[:, 2:], corners[:, 2:] - corners[:, :2])
    assert not objects.rotations.any()
