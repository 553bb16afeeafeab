"""The types that pass between the stages, and the hashes and JSON that chain them.

Nothing here imports torch or onnx: the device reads engines with this module. What only the host does with an ONNX file
is in ``graph.model``, and with a checkpoint in ``models.checkpoint``.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from edge_effdet.errors import EngineError, InputError

Size = tuple[int, int]
"""Height and width in pixels."""

PRECISIONS = ("fp32", "fp16", "int8")

FUSIONS = ("fast", "softmax", "unbounded", "sum")
"""How a BiFPN node sums its inputs; ``models.bifpn`` has the formulas."""


@dataclass(frozen=True, slots=True)
class AnchorSpec:
    """RetinaNet-style anchors over pyramid levels, with the meaning that effdet gives each number.

    Level ``l`` has a cell every ``2**l`` pixels; each cell has ``num_scales * len(aspect_ratios)`` anchors of base size
    ``anchor_scale * stride``. An aspect ratio is the pair of factors on width and height.
    """

    min_level: int = 3
    max_level: int = 7
    num_scales: int = 3
    aspect_ratios: tuple[tuple[float, float], ...] = ((1.0, 1.0), (1.4, 0.7), (0.7, 1.4))
    anchor_scale: float = 4.0


@dataclass(frozen=True, slots=True)
class PreprocessSpec:
    """Letterbox into the top-left corner, fill with the mean colour, then ``(pixel / 255 - mean) / std`` in the graph."""

    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)

    @property
    def fill_color(self) -> tuple[int, int, int]:
        """The colour of the border, 0 to 255, RGB."""
        red, green, blue = (round(255 * channel) for channel in self.mean)
        return red, green, blue


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """All that is needed to turn pixels into boxes.

    Attributes:
        name: the architecture, as effdet spells it.
        image_size: height and width of the network's input, pixels.
        class_names: one name an output class, 0-based.
        category_ids: the data set's own id of each class (COCO's 1 to 90), in the order of ``class_names``.
        anchors: the anchor grid.
        preprocess: normalisation and fill.
        fusion: how the BiFPN sums its inputs, one of ``FUSIONS``.
    """

    name: str
    image_size: Size
    class_names: tuple[str, ...]
    category_ids: tuple[int, ...]
    anchors: AnchorSpec = field(default_factory=AnchorSpec)
    preprocess: PreprocessSpec = field(default_factory=PreprocessSpec)
    fusion: str = "fast"

    def __post_init__(self) -> None:
        if len(self.class_names) != len(self.category_ids):
            raise InputError(
                f"The model names {len(self.class_names)} classes but {len(self.category_ids)} category ids; "
                "give one id a class."
            )
        if not self.class_names:
            raise InputError("A model needs at least one class; the data set that was given has none.")
        if self.fusion not in FUSIONS:
            raise InputError(
                f"The model's BiFPN fusion {self.fusion!r} is none of {', '.join(FUSIONS)}; it was made by another version "
                "of edge_effdet: install that one, or train again."
            )

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> ModelSpec:
        """Read what ``to_dict`` wrote, after a trip through JSON. Raises InputError where a field is missing."""
        try:
            anchors, preprocess = dict(raw["anchors"]), dict(raw["preprocess"])
            anchors["aspect_ratios"] = tuple((float(w), float(h)) for w, h in anchors["aspect_ratios"])
            height, width = raw["image_size"]
            return cls(
                name=str(raw["name"]),
                image_size=(int(height), int(width)),
                class_names=tuple(raw["class_names"]),
                category_ids=tuple(int(number) for number in raw["category_ids"]),
                anchors=AnchorSpec(**anchors),
                preprocess=PreprocessSpec(tuple(preprocess["mean"]), tuple(preprocess["std"])),
                fusion=str(raw["fusion"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"The model description is damaged ({type(error).__name__}: {error}); export the model again."
            ) from error


@dataclass(frozen=True, slots=True)
class Detections:
    """What was found in one image.

    Attributes:
        boxes: float32 [N, 4], x_min y_min x_max y_max in pixels of the original image.
        scores: float32 [N], 0 to 1, descending.
        class_ids: int32 [N], 0-based into ``ModelSpec.class_names``.
    """

    boxes: np.ndarray
    scores: np.ndarray
    class_ids: np.ndarray

    def __post_init__(self) -> None:
        count = len(self.scores)
        for name, shape, dtype in (
            ("boxes", (count, 4), np.float32),
            ("scores", (count,), np.float32),
            ("class_ids", (count,), np.int32),
        ):
            array = getattr(self, name)
            if array.shape != shape or array.dtype != dtype:
                raise ValueError(
                    f"Detections.{name} must be {np.dtype(dtype)} {list(shape)}, got {array.dtype} {list(array.shape)}"
                )
        if not np.isfinite(self.boxes).all() or not np.isfinite(self.scores).all():
            raise ValueError("Detections hold a value that is not finite; the engine is broken")

    def __len__(self) -> int:
        return len(self.scores)

    def above(self, threshold: float) -> Detections:
        """Those with a score of at least ``threshold``."""
        keep = self.scores >= threshold
        return Detections(self.boxes[keep], self.scores[keep], self.class_ids[keep])


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A safetensors file whose metadata holds the ModelSpec and how it was trained."""

    path: Path
    spec: ModelSpec
    provenance: Mapping[str, Any]
    sha256: str


@dataclass(frozen=True, slots=True)
class Graph:
    """An ONNX file whose ``metadata_props`` hold all of this except the path and its own hash.

    Attributes:
        path: the file.
        spec: the model's, unchanged from the checkpoint that the graph was made from.
        stage: ``optimized`` or ``quantized``.
        precision: ``fp32``, ``fp16`` or ``int8``.
        rewrites: how often each rule fired.
        parents: SHA-256 of what it was made from, by kind: ``checkpoint``, ``graph``.
        calibration: for INT8, method, number of images and the manifest's SHA-256; else empty.
        sha256: of the file.
    """

    path: Path
    spec: ModelSpec
    stage: str
    precision: str
    rewrites: Mapping[str, int]
    parents: Mapping[str, str]
    calibration: Mapping[str, Any]
    sha256: str


@dataclass(frozen=True, slots=True)
class Engine:
    """A compiled file, byte for byte as the backend made it, and the JSON beside it (``<file>.json``).

    Attributes:
        path: the file.
        spec: the model's, unchanged from the graph that the engine was built from.
        backend: the name in ``backends.base.BACKENDS`` that made it and runs it.
        precision: ``fp32``, ``fp16`` or ``int8``.
        record: the whole JSON object in the file beside the engine; ``load_engine`` reads it.
    """

    path: Path
    spec: ModelSpec
    backend: str
    precision: str
    record: Mapping[str, Any]

    @property
    def json_path(self) -> Path:
        return engine_json_path(self.path)

    @property
    def sha256(self) -> str:
        return str(self.record["engine_sha256"])


RECORD_FORMAT = 2
"""Of ``<engine>.json`` as it is written. Format 1 had no golden pictures, no gate and no account of the engine's own."""

_KNOWN_FORMATS = (1, 2)


def engine_json_path(engine: Path) -> Path:
    return engine.with_name(engine.name + ".json")


def load_engine(path: Path) -> Engine:
    """Read an engine's JSON and check the file against the hash in it.

    Raises:
        EngineError: the file or its JSON is missing, damaged, or they do not belong together.
    """
    path = Path(path)
    if not path.is_file():
        raise EngineError(f"There is no engine at {path}; build one with python -m edge_effdet.build_engine.")
    json_path = engine_json_path(path)
    if not json_path.is_file():
        raise EngineError(
            f"{path.name} has no {json_path.name} beside it, so its classes and input size are unknown; "
            "copy both files that build_engine wrote, or build the engine again."
        )
    try:
        record = json.loads(json_path.read_text(encoding="utf-8"))
        spec = ModelSpec.from_dict(record["spec"])
        known = record.get("format", 1)
        engine = Engine(path, spec, record["backend"], record["precision"], record)
        expected = engine.sha256
    except (ValueError, KeyError, TypeError, InputError) as error:
        raise EngineError(
            f"{json_path} is not an engine description ({error}); copy it again or rebuild the engine."
        ) from error
    if known not in _KNOWN_FORMATS:
        raise EngineError(
            f"{json_path} is of format {known!r}, and this version of edge_effdet reads {' and '.join(map(str, _KNOWN_FORMATS))}; install "
            "the version that built the engine, or build it again with this one."
        )
    if file_sha256(path) != expected:
        raise EngineError(
            f"{path} is not the file that {json_path.name} describes (its SHA-256 differs), so its accuracy is unproven; "
            "copy both files again or rebuild the engine."
        )
    return engine


def file_sha256(path: Path) -> str:
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else _digest(stream)


def _digest(stream: Any) -> str:
    # Python 3.10, which JetPack 6 ships, has no hashlib.file_digest.
    digest = hashlib.sha256()
    for block in iter(lambda: stream.read(1 << 20), b""):
        digest.update(block)
    return digest.hexdigest()


def text_sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


@contextlib.contextmanager
def atomic_output(path: Path) -> Iterator[Path]:
    """Give a temporary path beside ``path`` and rename it when the block ends without an error.

    Raises:
        InputError: the folder cannot be made or written.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    except OSError as error:
        raise InputError(
            f"Cannot write {path}: {error.strerror or error}; choose another output folder with --output."
        ) from error
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        # mkstemp makes files that only the owner reads; an engine is for other users too.
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        os.replace(temporary, path)
    except OSError as error:
        raise InputError(f"Writing {path} failed: {error.strerror or error}; is the disk full?") from error
    finally:
        temporary.unlink(missing_ok=True)


def require_writable(folder: Path) -> None:
    """Make a folder and write in it, so that a stage fails before minutes of work and not after. Raises InputError."""
    probe = Path(folder) / ".writable"
    with atomic_output(probe):
        pass
    # Several processes may look at once.
    probe.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    with atomic_output(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")
