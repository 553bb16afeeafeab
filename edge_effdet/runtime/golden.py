"""The golden check: a few pictures that travel with an engine, what the proven engine found in them, and whether this machine agrees.

A hash proves that the file is the one that was proven, and not that this processor computes the same with it: INT8 products that
saturate (``backends.arithmetic``), a runtime that is broken or emulated wrongly, or a GPU of another generation find other objects
with the same file. ``Detector.load`` therefore runs the check once on each kind of machine (``backends.fingerprint``) and keeps the
answer. Nothing here needs more than NumPy, Pillow and the engine's own backend.
"""

from __future__ import annotations

import base64
import io
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from edge_effdet.artifacts import Detections, Engine, EngineRecord, ModelSpec, Size, json_text, text_sha256
from edge_effdet.artifacts.reading import to_json
from edge_effdet.artifacts.record import Fingerprint, Golden, GoldenPicture
from edge_effdet.backends.arithmetic import int8_arithmetic
from edge_effdet.backends.base import Runner
from edge_effdet.backends.fingerprint import describe_machine, machine_fingerprint
from edge_effdet.backends.runtime_cache import read_private, user_cache_folder, write_private
from edge_effdet.errors import EngineError, InputError
from edge_effdet.runtime.agreement import TOLERANCES, detection_distance, find_best, total_score
from edge_effdet.runtime.contract import require_contract

logger = logging.getLogger("edge_effdet.runtime.golden")

KINDS = ("pictures", "drawn", "none")
PICTURES = 3
LEAST_TOTAL = 0.5
"""Golden pictures whose compared scores add up to less tell nothing: there is no object in them that could be missed."""

MOST_BYTES = 100_000
"""The most that one picture takes in the record, before base64."""


@dataclass(frozen=True, slots=True)
class Check:
    """How a check went.

    Attributes:
        distance: how far what is found here lies from what the proven engine found (``agreement.detection_distance``).
        tolerance: the largest distance that passes.
        proven_on: the machine that the engine was proven on.
        here: this machine.
        from_cache: whether an earlier load ran it, and not this one.
    """

    distance: float
    tolerance: float
    proven_on: Fingerprint
    here: Fingerprint
    from_cache: bool = False

    @property
    def passed(self) -> bool:
        """Whether the engine finds here what it found where it was proven."""
        return self.distance <= self.tolerance

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "distance": self.distance,
            "tolerance": self.tolerance,
            "passed": self.passed,
            "proven_on": to_json(self.proven_on),
            "here": to_json(self.here),
        }


def make_golden(
    runner: Runner,
    spec: ModelSpec,
    images: Sequence[np.ndarray | bytes],
    kind: str,
    precision: str,
    proven_on: Fingerprint,
) -> Golden:
    """The golden pictures of an engine, with what it finds in them here.

    Args:
        runner: the engine, or the graph that it was compiled from where the engine cannot run here.
        spec: the engine's spec.
        images: uint8 [H, W, 3] in the size of the network's input, or the content of such JPEG files; the ``PICTURES`` in which most is found are
            taken.
        kind: one of ``KINDS``; for ``none`` only the fingerprint is kept.
        precision: the engine's precision, which gives the tolerance.
        proven_on: the fingerprint of this machine and of the backend that runs here.
    """
    if kind == "none":
        return Golden(kind="none", fingerprint=proven_on)
    seen = []
    for image in images:
        picture = image if isinstance(image, bytes) else encode_picture(image)
        seen.append((picture, find_best(runner, spec, _decode(picture))))
    seen.sort(key=lambda each: -total_score([each[1]]))
    if total_score([found for _, found in seen[:PICTURES]]) < LEAST_TOTAL:
        logger.warning(
            "the engine finds next to nothing in its golden pictures, so they could not tell that it finds nothing elsewhere; none are kept"
        )
        return Golden(kind="none", fingerprint=proven_on, why="it finds next to nothing in them")
    golden = Golden(
        kind=kind,
        fingerprint=proven_on,
        tolerance=TOLERANCES[precision],
        pictures=tuple(_as_record(picture, found) for picture, found in seen[:PICTURES]),
    )
    return replace(golden, sha256=_golden_sha256(golden))


def read_golden(engine: Engine) -> Golden | None:
    """The golden pictures of an engine; None where it carries none.

    Raises:
        EngineError: they are damaged.
    """
    golden = None if engine.record is None else engine.record.golden
    if golden is None or golden.kind == "none":
        return None
    if golden.sha256 != _golden_sha256(golden):
        raise _damaged(engine, "their SHA-256 differs")
    return golden


def proven_detections(golden: Golden) -> list[Detections]:
    """What the proven engine found in each picture, in pixels of the network's input."""
    return [
        Detections(
            np.array(each.boxes, np.float32).reshape(-1, 4),
            np.array(each.scores, np.float32),
            np.array(each.class_ids, np.int32),
        )
        for each in golden.pictures
    ]


def _as_record(picture: bytes, found: Detections) -> GoldenPicture:
    left, top, right, bottom = np.round(found.boxes.astype(np.float64), 2).T.tolist()
    return GoldenPicture(
        tuple(zip(left, top, right, bottom, strict=True)),
        tuple(np.round(found.scores.astype(np.float64), 4).tolist()),
        tuple(found.class_ids.tolist()),
        base64.b64encode(picture).decode(),
    )


def decode_pictures(engine: Engine, golden: Golden) -> list[np.ndarray]:
    """The golden pictures, uint8 [H, W, 3] in the size of the engine's input. Raises EngineError where they are damaged."""
    try:
        size = engine.spec.image_size
        images = [_decode(base64.b64decode(each.jpeg, validate=True), size) for each in golden.pictures]
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise _damaged(engine, str(error)) from error
    return images


def _damaged(engine: Engine, error: str) -> EngineError:
    return EngineError(
        f"The golden pictures in {engine.json_path} are damaged ({error}), so what the engine finds here cannot be compared "
        "with what was proven; copy the file again, or build the engine again."
    )


def check_engine(runner: Runner, engine: Engine, golden: Golden) -> Check:
    """Run the golden pictures on this machine and compare. It takes as long as a run a picture.

    Raises:
        EngineError: the engine has not the tensors of a detector, or fails; or its golden pictures are damaged.
    """
    require_contract(runner, engine.spec)
    try:
        proven = proven_detections(golden)
    except ValueError as error:
        raise _damaged(engine, str(error)) from error
    found = [find_best(runner, engine.spec, image) for image in decode_pictures(engine, golden)]
    here = machine_fingerprint(engine.backend)
    return Check(detection_distance(proven, found), golden.tolerance, golden.fingerprint, here)


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
    gate = None if engine.record is None else engine.record.gate
    if gate is not None and not gate.passed:
        logger.warning("%s did not pass the accuracy gate when it was built: %s", engine.path.name, gate.text)
    kept = None if engine.record is None else engine.record.golden
    if kept is None:
        logger.warning(
            "%s carries no golden pictures, so nothing tells whether it finds the same on this machine as where it was proven; "
            "build it again to have them",
            engine.path.name,
        )
        return None
    golden, here = read_golden(engine), machine_fingerprint(engine.backend)
    if golden is None:
        if kept.fingerprint != here:
            logger.warning(
                "%s carries no golden pictures (%s) and is loaded on another kind of machine (%s), so nothing tells whether it finds "
                "the same here; judge it with python -m edge_effdet.verify --engine %s --data D",
                engine.path.name, kept.why or "none were wanted when it was built", describe_machine(here), engine.path,
            )  # fmt: skip
        return None
    if golden.fingerprint == here:
        return None
    known = _read_answer(engine, golden, here)
    if known is not None:
        return known
    logger.info("%s is new to this kind of machine (%s): checking it on %d pictures",
                engine.path.name, describe_machine(here), len(golden.pictures))  # fmt: skip
    check = check_engine(runner, engine, golden)
    if not check.passed:
        raise EngineError(refusal(engine, check))
    logger.info(
        "%s finds the same here as where it was proven (%s)", engine.path.name, describe_machine(golden.fingerprint)
    )
    _keep_answer(engine, golden, check)
    return check


def refusal(engine: Engine, check: Check) -> str:
    """In one sentence: what differs, by how much, and what to do."""
    why = ""
    if engine.precision == "int8" and check.here.processor == "x86" and int8_arithmetic(engine.backend).saturates:
        why = "; without VNNI this processor's INT8 sums saturate, unless weights keep to 7 bits"
    here, there = describe_machine(check.here), describe_machine(check.proven_on)
    if here == there:
        differing = sorted(set(check.here.instructions) ^ set(check.proven_on.instructions))
        here += f", which differs in {', '.join(differing)}" if differing else f" ({check.here.version})"
    return (
        f"{engine.path} finds other objects on this machine ({here}) than where it was proven ({there}): on its golden pictures the "
        f"scores differ by {100 * check.distance:.0f} %, and "
        f"{100 * check.tolerance:.0f} % are allowed{why}; build it again with python -m edge_effdet.build_engine, see in which layer "
        f"it parts with python -m edge_effdet.verify --engine {engine.path} --layers, or take the risk with `self_check=False`."
    )


def encode_picture(image: np.ndarray) -> bytes:
    """uint8 [H, W, 3] to a JPEG of at most ``MOST_BYTES``."""
    for quality in (90, 75, 50, 25, 10, 5):
        stream = io.BytesIO()
        Image.fromarray(image).save(stream, "JPEG", quality=quality)
        if stream.tell() <= MOST_BYTES:
            break
    return stream.getvalue()


def _decode(picture: bytes, size: Size | None = None) -> np.ndarray:
    """The pixels of a JPEG file. Raises ValueError where it is not of this size, before it is decoded, since a small file may hold a huge picture."""
    image = Image.open(io.BytesIO(picture), formats=["JPEG"])
    if size is not None and (image.height, image.width) != size:
        raise ValueError("they are not of the size of the network's input")
    return np.asarray(image.convert("RGB"))


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


def without_pictures(record: EngineRecord) -> dict[str, Any]:
    """An engine's record for printing: what was found stays, and the pictures' content goes."""
    raw = to_json(record)
    for picture in (raw["golden"] or {}).get("pictures", ()):
        del picture["jpeg"]
    return raw


def _golden_sha256(golden: Golden) -> str:
    return _digest(to_json(golden))


def _digest(record: Mapping[str, Any]) -> str:
    content = {key: value for key, value in record.items() if key != "sha256"}
    return text_sha256(json.dumps(content, sort_keys=True))


def _answer_path(engine: Engine, here: Fingerprint) -> Path:
    """A file of the user's own: what others can write must not vouch for an engine. Raises RuntimeError for a user without a home."""
    return user_cache_folder() / "golden" / f"{engine.sha256[:16]}-{text_sha256(repr(here))[:16]}.json"


def _answer(engine: Engine, golden: Golden, check: Check) -> dict[str, Any]:
    answer = {"engine_sha256": engine.sha256, "golden_sha256": golden.sha256, **check.to_dict()}
    return {**answer, "sha256": _digest(answer)}


def _read_answer(engine: Engine, golden: Golden, here: Fingerprint) -> Check | None:
    """The answer of an earlier load; None where there is none, or others may have written it, or it is damaged or of something else."""
    try:
        content = read_private(_answer_path(engine, here))
        if content is None:
            return None
        raw = json.loads(content)
        check = Check(float(raw["distance"]), golden.tolerance, golden.fingerprint, here, from_cache=True)
        return check if check.passed and raw == _answer(engine, golden, check) else None
    except (ValueError, KeyError, TypeError, RuntimeError):
        return None


def _keep_answer(engine: Engine, golden: Golden, check: Check) -> None:
    try:
        answer = json_text(_answer(engine, golden, check), indent=2) + "\n"
        write_private(_answer_path(engine, check.here), answer.encode())
    except (OSError, InputError, RuntimeError) as error:
        # The next load runs the check again, which costs some runs and breaks nothing.
        logger.info("the answer cannot be kept (%s), so each load checks the engine anew", error)
