"""The golden check: a few pictures that travel with an engine, what the proven engine found in them, and whether this machine agrees.

A hash proves that the file is the one that was proven, and not that this processor computes the same with it: INT8 products that
saturate (``backends.arithmetic``), a runtime that is broken or emulated wrongly, or a GPU of another generation find other objects
with the same file. ``Detector.load`` therefore runs the check once on each kind of machine (``backends.fingerprint``) and keeps the
answer. Nothing here needs more than NumPy, Pillow and the engine's own backend.
"""

from __future__ import annotations

import base64
import binascii
import io
import json
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from edge_effdet.artifacts import Detections, Engine, ModelSpec, Size, text_sha256, write_json
from edge_effdet.backends.arithmetic import int8_arithmetic
from edge_effdet.backends.base import Runner
from edge_effdet.backends.fingerprint import Fingerprint, machine_fingerprint, read_fingerprint
from edge_effdet.backends.runtime_cache import user_cache_folder
from edge_effdet.errors import EngineError, InputError
from edge_effdet.runtime.nms import iou_matrix
from edge_effdet.runtime.postprocess import detections_from_outputs
from edge_effdet.runtime.preprocess import feeds_for_image

logger = logging.getLogger("edge_effdet.runtime.golden")

KINDS = ("pictures", "drawn", "none")
PICTURES = 3
KEPT, BEST = 100, 20
"""Detections of a picture that are kept, and of these the best that are compared, each with all that the other side kept: which one is
the twentieth and which the twenty-first is decided by any rounding. Further ones have scores of a hundredth."""

SCORE_FLOOR, KEPT_FLOOR = 0.01, 0.003
"""Scores from which detections are compared, and from which they are kept: one that is just above the first on one side may be just
below it on the other."""

LEAST_TOTAL = 0.5
"""Golden pictures whose compared scores add up to less tell nothing: there is no object in them that could be missed."""

SAME_BOX = 0.5
"""Two boxes of one class are the same object from this overlap (IoU) on."""

MOST_BYTES = 100_000
"""Of one picture in the record."""

TOLERANCES: Mapping[str, float] = {"fp32": 0.02, "fp16": 0.1, "int8": 0.1}
"""The distance (``detection_distance``) that still counts as the same, by the engine's precision.

FP32 differs by the order of its sums: less than 0.001 between onnxruntime and OpenVINO. FP16 may be computed in BF16, which keeps 8
bits. In INT8 two runtimes that compute exactly round a few activations to neighbouring codes. OpenVINO and onnxruntime are 0.01 to 0.05
apart on three detectors (lite0 and D0 of BCCD, lite0 of the shipped scenes; three pictures at a time), and an OpenVINO that saturates
0.17 to 0.60 on photographs and 0.14 to 0.50 on drawn pictures (``benchmarks/golden.py``, AMD EPYC without VNNI)."""

FROM_REFERENCE = 0.3
"""The distance from the FP32 graph, on photographs, above which an engine is wrong whatever its backend does.

INT8 that is computed exactly is 0.03 to 0.10 away on the detectors named above, with the quick ranges of a race's draft up to 0.15, and one
that saturates 0.17 to 0.61. Whether a backend computes its graph is judged by its distance from that graph, which is sharper; this limit
is for a graph that rounding itself has spoilt, where there are no labels to say so. Drawn pictures are not held against it: what a
detector finds in them is mostly noise."""


@dataclass(frozen=True, slots=True)
class Golden:
    """What is checked.

    Attributes:
        kind: ``pictures``, which are the user's, or ``drawn``.
        pictures: each the content of a JPEG in the size of the network's input.
        found: what the proven engine found in each, in pixels of that input.
        tolerance: the distance that still counts as the same.
        fingerprint: of the machine and the backend that found it.
        sha256: of all of this.
    """

    kind: str
    pictures: tuple[bytes, ...]
    found: tuple[Detections, ...]
    tolerance: float
    fingerprint: Fingerprint
    sha256: str

    def images(self) -> list[np.ndarray]:
        """The pictures, uint8 [H, W, 3] each, as this machine's Pillow decodes them."""
        return [_decode(picture) for picture in self.pictures]


@dataclass(frozen=True, slots=True)
class Check:
    """How a check went.

    Attributes:
        distance: of what is found here from what the proven engine found.
        tolerance: how much is allowed.
        proven_on, here: the two machines.
        from_cache: whether it was run by an earlier load and not now.
    """

    distance: float
    tolerance: float
    proven_on: Fingerprint
    here: Fingerprint
    from_cache: bool = False

    @property
    def passed(self) -> bool:
        return self.distance <= self.tolerance

    def to_dict(self) -> dict[str, Any]:
        return {
            "distance": self.distance,
            "tolerance": self.tolerance,
            "passed": self.passed,
            "proven_on": self.proven_on.to_dict(),
            "here": self.here.to_dict(),
        }


def make_golden(
    runner: Runner, spec: ModelSpec, images: Sequence[np.ndarray], kind: str, precision: str, proven_on: Fingerprint
) -> dict[str, Any]:
    """What ``<engine>.json`` holds under ``golden``: the pictures, and what the engine finds in them here.

    Args:
        runner: the engine, or the graph that it was compiled from where the engine cannot run here.
        spec: the engine's.
        images: uint8 [H, W, 3] in the size of the network's input; the ``PICTURES`` in which most is found are taken.
        kind: one of ``KINDS``; for ``none`` only the fingerprint is kept.
        precision: the engine's, which gives the tolerance.
        proven_on: fingerprint of this machine and of the backend that runs here.
    """
    record: dict[str, Any] = {"kind": kind, "fingerprint": proven_on.to_dict()}
    if kind == "none":
        return record
    seen = []
    for image in images:
        picture = encode_picture(image)
        seen.append((picture, find_best(runner, spec, _decode(picture))))
    seen.sort(key=lambda each: -total_score([each[1]]))
    if total_score([found for _, found in seen[:PICTURES]]) < LEAST_TOTAL:
        logger.warning(
            "the engine finds next to nothing in its golden pictures, so they could not tell that it finds nothing elsewhere; none are kept"
        )
        return {**record, "kind": "none", "why": "it finds next to nothing in them"}
    record |= {
        "tolerance": TOLERANCES[precision],
        "pictures": [
            {
                "boxes": np.round(found.boxes, 2).tolist(),
                "scores": np.round(found.scores, 4).tolist(),
                "class_ids": found.class_ids.tolist(),
                "jpeg": base64.b64encode(picture).decode(),
            }
            for picture, found in seen[:PICTURES]
        ],
    }
    return {**record, "sha256": _digest(record)}


def read_golden(engine: Engine) -> Golden | None:
    """The golden pictures of an engine; None where it carries none.

    Raises:
        EngineError: they are damaged.
    """
    raw = engine.record.get("golden")
    if not raw:
        return None
    try:
        if raw["kind"] == "none":
            return None
        if raw["sha256"] != _digest(raw):
            raise ValueError("their SHA-256 differs")
        found = tuple(
            Detections(
                np.array(each["boxes"], np.float32).reshape(-1, 4),
                np.array(each["scores"], np.float32),
                np.array(each["class_ids"], np.int32),
            )
            for each in raw["pictures"]
        )
        pictures = tuple(base64.b64decode(each["jpeg"], validate=True) for each in raw["pictures"])
        fingerprint = read_fingerprint(raw["fingerprint"])
        return Golden(str(raw["kind"]), pictures, found, float(raw["tolerance"]), fingerprint, str(raw["sha256"]))
    except (KeyError, TypeError, ValueError, AttributeError, binascii.Error) as error:
        raise _damaged(engine, error) from error


def decode_pictures(engine: Engine, golden: Golden) -> list[np.ndarray]:
    """The golden pictures, uint8 [H, W, 3] in the size of the engine's input. Raises EngineError where they are damaged."""
    try:
        images = golden.images()
        if any(image.shape[:2] != engine.spec.image_size for image in images):
            raise ValueError("they are not of the size of the network's input")
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise _damaged(engine, error) from error
    return images


def _damaged(engine: Engine, error: BaseException) -> EngineError:
    return EngineError(
        f"The golden pictures in {engine.json_path} are damaged ({error}), so what the engine finds here cannot be compared "
        "with what was proven; copy the file again, or build the engine again."
    )


def check_engine(runner: Runner, engine: Engine, golden: Golden) -> Check:
    """Run the golden pictures on this machine and compare. It takes as long as a run a picture."""
    found = [find_best(runner, engine.spec, image) for image in decode_pictures(engine, golden)]
    here = machine_fingerprint(engine.backend)
    return Check(detection_distance(golden.found, found), golden.tolerance, golden.fingerprint, here)


def require_same_results(runner: Runner, engine: Engine, wanted: bool = True) -> Check | None:
    """The check as ``Detector.load`` makes it: at the first load on each kind of machine, and remembered where it passes.

    Args:
        runner: the engine, loaded.
        engine: whose golden pictures are run.
        wanted: False to leave the check out, which is warned of.

    Returns:
        How it went; None where the engine was proven on such a machine or carries nothing to compare with, which is warned of.

    Raises:
        EngineError: the engine finds other objects here than where it was proven, or its golden pictures are damaged.
    """
    if not wanted:
        logger.warning("%s is used without its golden check, as asked", engine.path.name)
        return None
    gate = engine.record.get("gate")
    if isinstance(gate, Mapping) and gate.get("passed") is False:
        logger.warning("%s was not within its budget when it was built: %s", engine.path.name, gate.get("text"))
    raw = engine.record.get("golden")
    if not raw:
        logger.warning(
            "%s carries no golden pictures, so nothing tells whether it finds the same on this machine as where it was proven; "
            "build it again to have them",
            engine.path.name,
        )
        return None
    golden, here = read_golden(engine), machine_fingerprint(engine.backend)
    if golden is None:
        if raw.get("fingerprint") != here.to_dict():
            logger.warning(
                "%s carries no golden pictures (%s) and is loaded on another kind of machine (%s), so nothing tells whether it finds "
                "the same here; judge it with python -m edge_effdet.verify --engine %s --data D",
                engine.path.name, raw.get("why", "it was built with --golden none"), here.text(), engine.path,
            )  # fmt: skip
        return None
    if golden.fingerprint == here:
        return None
    known = _read_answer(engine, golden, here)
    if known is not None:
        return known
    logger.info("%s is new to this kind of machine (%s): checking it on %d pictures",
                engine.path.name, here.text(), len(golden.pictures))  # fmt: skip
    check = check_engine(runner, engine, golden)
    if not check.passed:
        raise EngineError(refusal(engine, check))
    logger.info("%s finds the same here as where it was proven (%s)", engine.path.name, golden.fingerprint.text())
    _keep_answer(engine, golden, check)
    return check


def refusal(engine: Engine, check: Check) -> str:
    """In one sentence: what differs, by how much, and what to do."""
    why = ""
    if engine.precision == "int8" and check.here.processor == "x86" and int8_arithmetic(engine.backend).saturates:
        why = "; without VNNI this processor's INT8 sums saturate, unless weights keep to 7 bits"
    here, there = check.here.text(), check.proven_on.text()
    if here == there:
        differing = sorted(set(check.here.instructions) ^ set(check.proven_on.instructions))
        here += f", which differs in {', '.join(differing)}" if differing else f" ({check.here.version})"
    return (
        f"{engine.path} finds other objects on this machine ({here}) than where it was proven ({there}): on its golden pictures the "
        f"scores differ by {100 * check.distance:.0f} %, and "
        f"{100 * check.tolerance:.0f} % are allowed{why}; build it again with python -m edge_effdet.build_engine, see in which layer "
        f"it parts with python -m edge_effdet.verify --engine {engine.path} --layers, or take the risk with --no-self-check."
    )


def find_best(runner: Runner, spec: ModelSpec, image: np.ndarray) -> Detections:
    """The ``KEPT`` best detections of one picture of the size of the network's input, uint8 [H, W, 3]."""
    size: Size = (image.shape[0], image.shape[1])
    outputs = runner.run(feeds_for_image(runner, image, spec))
    boxes, scores, class_ids = (outputs[name][0] for name in ("boxes", "scores", "class_ids"))
    return detections_from_outputs(boxes, scores, class_ids, size, spec.image_size, KEPT_FLOOR, limit=KEPT)


def detection_distance(proven: Sequence[Detections], found: Sequence[Detections]) -> float:
    """How far two lists of detections of the same pictures lie apart, 0 for the same and 1 for nothing in common.

    Each of the ``BEST`` detections of one list is looked for in the other: the same class, an overlap of ``SAME_BOX`` or more, and of those the
    nearest score. What its score differs by is added up, or all of its score where nothing is found. The larger of both directions
    counts, so that objects that are made up count as those that are missed. The result is a share of the scores of the list with more,
    so that a detector with low scores is not judged more mildly.
    """
    total = max(total_score(proven), total_score(found))
    return max(_missing(proven, found), _missing(found, proven)) / total if total else 0.0


def total_score(every: Sequence[Detections]) -> float:
    """The compared scores of all pictures, added up."""
    return sum(float(_compared(each).scores.sum()) for each in every)


def _compared(found: Detections) -> Detections:
    best = found.above(SCORE_FLOOR)
    return Detections(best.boxes[:BEST], best.scores[:BEST], best.class_ids[:BEST])


@dataclass(frozen=True, slots=True)
class Agreement:
    """Whether an engine finds what the graph that it was made from finds, on a few pictures.

    Attributes:
        distance: of what the engine finds from what the reference finds.
        allowed: ``FROM_REFERENCE``; None on drawn pictures, which are not held against the reference.
        from_exact: of what the engine finds from what its own graph finds where that is computed exactly: the backend's own part.
        from_exact_allowed: the tolerance of the precision.
        pictures: how many.
        reference: what it is compared with, for people.
    """

    distance: float
    allowed: float | None
    from_exact: float
    from_exact_allowed: float
    pictures: int
    reference: str

    @property
    def backend_right(self) -> bool:
        return self.from_exact <= self.from_exact_allowed

    @property
    def right(self) -> bool:
        return self.backend_right and (self.allowed is None or self.distance <= self.allowed)

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "backend_right": self.backend_right, "right": self.right, "text": self.text()}

    def text(self) -> str:
        """A clause for people, of the part that is wrong where one is."""
        if self.backend_right and self.allowed is not None:
            distance, allowed, reference = self.distance, self.allowed, self.reference
        else:
            distance, allowed = self.from_exact, self.from_exact_allowed
            reference = "its own graph, computed exactly,"
        pictures = f"{self.pictures} pictures" if self.pictures > 1 else "1 picture"
        return f"on {pictures} its scores differ from those of {reference} by {100 * distance:.0f} %, and {100 * allowed:.0f} % are allowed"


def measure_agreement(
    reference: Sequence[Detections],
    exact: Sequence[Detections],
    found: Sequence[Detections],
    title: str,
    precision: str,
    drawn: bool = False,
) -> Agreement:
    """Compare an engine with the graph that it was made from.

    Args:
        reference: what the FP32 graph finds in each picture.
        exact: what the engine's own graph finds where it is computed exactly.
        found: what the engine finds.
        title: of the reference, for people.
        precision: the engine's.
        drawn: whether the pictures are drawn.
    """
    return Agreement(
        detection_distance(reference, found),
        None if drawn else FROM_REFERENCE,
        detection_distance(exact, found),
        TOLERANCES[precision],
        len(found),
        title,
    )


def encode_picture(image: np.ndarray) -> bytes:
    """uint8 [H, W, 3] to a JPEG of at most ``MOST_BYTES``."""
    for quality in (90, 75, 50, 25, 10, 5):
        stream = io.BytesIO()
        Image.fromarray(image).save(stream, "JPEG", quality=quality)
        if stream.tell() <= MOST_BYTES:
            break
    return stream.getvalue()


def _decode(picture: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(picture), formats=["JPEG"]).convert("RGB"))


def draw_pictures(size: Size, count: int, seed: int = 0) -> list[np.ndarray]:
    """Seeded shapes on noise, uint8 [H, W, 3] each, where the user's pictures must not travel."""
    height, width = size
    rows, columns = np.mgrid[:height, :width]
    pictures = []
    for number in range(count):
        generator = np.random.default_rng((seed, number))
        coarse = generator.normal(128, 30, (height // 8 + 1, width // 8 + 1, 3))
        picture = np.kron(coarse, np.ones((8, 8, 1)))[:height, :width]
        for _ in range(12):
            color, top, left = generator.integers(0, 256, 3), generator.integers(height), generator.integers(width)
            radius = generator.integers(max(2, height // 20), max(3, height // 5))
            inside = np.hypot(rows - top, columns - left) < radius
            if generator.random() < 0.5:
                inside = (abs(rows - top) < radius) & (abs(columns - left) < radius * generator.uniform(0.4, 1))
            picture[inside] = color
        picture = picture + generator.normal(0, 12, picture.shape)
        pictures.append(np.clip(picture, 0, 255).astype(np.uint8))
    return pictures


def without_pictures(record: Mapping[str, Any]) -> dict[str, Any]:
    """An engine's record for printing: what was found stays, and the pictures' content goes."""
    golden = record.get("golden")
    if not golden or "pictures" not in golden:
        return dict(record)
    kept = [{key: value for key, value in each.items() if key != "jpeg"} for each in golden["pictures"]]
    return {**record, "golden": {**golden, "pictures": kept}}


def _missing(wanted: Sequence[Detections], found: Sequence[Detections]) -> float:
    """What one list's scores differ by from the other's, added up."""
    missing = 0.0
    for ours, theirs in zip(map(_compared, wanted), found, strict=True):
        if not len(ours):
            continue
        same = iou_matrix(ours.boxes, theirs.boxes) >= SAME_BOX
        same &= ours.class_ids[:, None] == theirs.class_ids[None]
        differences = np.where(same, np.abs(ours.scores[:, None] - theirs.scores[None]), np.inf)
        missing += float(np.minimum(differences.min(axis=1, initial=np.inf), ours.scores).sum())
    return missing


def _digest(record: Mapping[str, Any]) -> str:
    content = {key: value for key, value in record.items() if key != "sha256"}
    return text_sha256(json.dumps(content, sort_keys=True))


def _answer_path(engine: Engine, here: Fingerprint) -> Path:
    """A file of the user's own: what others can write must not vouch for an engine. Raises RuntimeError for a user without a home."""
    return user_cache_folder() / "golden" / f"{engine.sha256[:16]}-{here.sha256[:16]}.json"


def _answer(engine: Engine, golden: Golden, check: Check) -> dict[str, Any]:
    answer = {"engine_sha256": engine.sha256, "golden_sha256": golden.sha256, **check.to_dict()}
    return {**answer, "sha256": _digest(answer)}


def _read_answer(engine: Engine, golden: Golden, here: Fingerprint) -> Check | None:
    """The answer of an earlier load; None where there is none, or others may have written it, or it is damaged or of something else."""
    try:
        path = _answer_path(engine, here)
        if hasattr(os, "getuid") and not all(_is_private(each) for each in (path, path.parent)):
            return None
        raw = json.loads(path.read_text(encoding="utf-8"))
        check = Check(float(raw["distance"]), golden.tolerance, golden.fingerprint, here, from_cache=True)
        return check if check.passed and raw == _answer(engine, golden, check) else None
    except (OSError, ValueError, KeyError, TypeError, RuntimeError):
        return None


def _is_private(path: Path) -> bool:
    status = path.stat()
    return status.st_uid == os.getuid() and not status.st_mode & 0o022


def _keep_answer(engine: Engine, golden: Golden, check: Check) -> None:
    try:
        path = _answer_path(engine, check.here)
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.parent.chmod(0o700)
        write_json(path, _answer(engine, golden, check))
        path.chmod(0o600)
    except (OSError, InputError, RuntimeError) as error:
        # The next load runs the check again, which costs some runs and breaks nothing.
        logger.info("the answer cannot be kept (%s), so each load checks the engine anew", error)
