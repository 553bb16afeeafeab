"""The record of an engine: what stands in the JSON beside it. ``docs/engine-record.schema.json`` is the JSON Schema of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from edge_effdet.artifacts.files import json_text, text_sha256
from edge_effdet.artifacts.reading import from_json, to_json
from edge_effdet.artifacts.spec import PRECISIONS, ModelSpec
from edge_effdet.errors import InputError, UsageError

RECORD_FORMAT = 3
"""The format of ``<engine>.json`` that this version writes, and the only one that it reads."""

DIGEST = "fields_sha256"
"""The key of the digest over the other fields, which ``record_to_json`` writes."""


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """A machine, as an engine sees it. Two machines with one fingerprint run the same kernels.

    Attributes:
        backend: the backend, a name of ``backends.base.BACKENDS``.
        version: the version of the backend's runtime.
        processor: ``x86``, ``arm`` or another family of processors, or the name of the GPU.
        instructions: the instruction sets of the processor for which a runtime has kernels of its own, sorted; empty for a GPU.
    """

    backend: str
    version: str
    processor: str
    instructions: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Latency:
    """How long a run of the network takes, without decoding, letterbox and suppression.

    Attributes:
        median_ms: the median over the runs, in milliseconds.
        p90_ms: the time that nine of ten runs keep to, in milliseconds.
        runs: how many runs were timed.
        batch: how many images one run takes.
        arithmetic: the type of what is not INT8, ``f32``, ``f16`` or ``bf16``, where the processor decides it; null where the graph does.
    """

    median_ms: float
    p90_ms: float
    runs: int
    batch: int
    arithmetic: str | None = None


@dataclass(frozen=True, slots=True)
class Reference:
    """The FP32 graph that the engine is compared with.

    Attributes:
        sha256: the hash of the graph's file.
        bytes: the size of the graph's file.
        latency: how fast onnxruntime runs it, measured in turns with the engine.
    """

    sha256: str
    bytes: int
    latency: Latency


@dataclass(frozen=True, slots=True)
class MeanTopScore:
    """The best score in an image, averaged over the images with a detection above 0.05.

    Attributes:
        reference: the FP32 graph's.
        built: the engine's.
    """

    reference: float
    built: float


@dataclass(frozen=True, slots=True)
class Confidence:
    """How scores are spread before and after: INT8 may keep the order, and so the AP, and flatten what a threshold sees.

    Attributes:
        edges: the edges of the bins of scores, ascending, one more than there are bins.
        reference: how many detections of the FP32 graph have a score in each bin.
        built: how many detections of the engine do.
        mean_top_score: the best score in an image, on average.
        flattened: whether that fell so far that a threshold chosen at FP32 misses objects.
    """

    edges: tuple[float, ...]
    reference: tuple[int, ...]
    built: tuple[int, ...]
    mean_top_score: MeanTopScore
    flattened: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Accuracy:
    """COCO AP, 0 to 1, of what was built and of the FP32 graph on the same labelled images.

    Attributes:
        AP: mean AP over the overlaps 0.50 to 0.95 of what was built.
        AP50: AP at an overlap of 0.50 of what was built.
        images: how many images were looked at.
        split: the split of the data set.
        measured_on: ``engine``, or ``graph`` where the engine cannot run on the machine that built it.
        data_sha256: the hash over the images and their boxes.
        reference_AP: the FP32 graph's AP; null where no FP32 graph was given.
        reference_AP50: the FP32 graph's AP50.
        drop: points of AP lost, 100 times the difference; negative for a gain.
        drop_interval: the points lost with a confidence of 95 %, by a bootstrap over the images.
        confidence: how scores are spread before and after.
        machine: where the AP was measured.
    """

    AP: float
    AP50: float
    images: int
    split: str
    measured_on: str
    data_sha256: str
    reference_AP: float | None = None  # noqa: N815
    reference_AP50: float | None = None  # noqa: N815
    drop: float | None = None
    drop_interval: tuple[float, float] | None = None
    confidence: Confidence | None = None
    machine: Fingerprint | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """In which precision the convolutions run, as shares of their multiply-accumulates.

    Attributes:
        int8_mac_fraction: the share that runs in INT8, 0 to 1, as the three below without the final class and box convolutions.
        fp16_mac_fraction: the share that runs in FP16.
        bf16_mac_fraction: the share that runs in BF16.
        fp32_mac_fraction: the share that runs in FP32.
        convolution_macs: the multiply-accumulates of these convolutions for one image.
        graph_int8_mac_fraction: the share that is INT8 in the graph that was compiled.
        counted_on: ``engine`` where the backend told what it built, else ``graph``.
        source: what told it; null where nothing did.
        layers_kept_high_precision: convolutions that are not INT8 in the graph.
        layers_below_graph: convolutions that are INT8 in the graph and not in the engine.
        layers_not_named: convolutions that the backend did not tell of; they count as in the graph.
        final_convolutions: the final class and box convolutions and the precision of each.
    """

    int8_mac_fraction: float
    fp16_mac_fraction: float
    bf16_mac_fraction: float
    fp32_mac_fraction: float
    convolution_macs: int
    graph_int8_mac_fraction: float
    counted_on: str
    source: str | None
    layers_kept_high_precision: tuple[str, ...]
    layers_below_graph: tuple[str, ...]
    layers_not_named: tuple[str, ...]
    final_convolutions: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """The images that the INT8 ranges were measured on, and how the ranges were worked out.

    Attributes:
        method: how a range was chosen from the values that were seen.
        images: how many images there were.
        split: the split of the data set that they were chosen from; empty where nothing named one.
        choice: how they were chosen.
        seed: the seed of the choice.
        manifest_sha256: the hash over the manifest.
        manifest: the SHA-256 of each image's file, by the image's id.
        options: the options of ``quantize``.
    """

    method: str
    images: int
    split: str
    choice: str
    seed: int
    manifest_sha256: str
    manifest: Mapping[str, str]
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """Whether the engine finds what the graph that it was made from finds, on a few pictures without labels.

    Attributes:
        distance: how far what the engine finds lies from what the reference finds, as a share of the scores, 0 to 1.
        allowed: the largest distance that passes; null on drawn pictures, which are not held against the reference.
        from_exact: how far what the engine finds lies from what its own graph finds where it is computed exactly: the backend's part.
        from_exact_allowed: the largest such distance that passes.
        pictures: how many pictures were compared.
        reference: what the reference is, for people.
        backend_right: whether the backend computes its own graph.
        right: whether the engine keeps to both limits.
        text: the figure that decides, as a clause.
    """

    distance: float
    allowed: float | None
    from_exact: float
    from_exact_allowed: float
    pictures: int
    reference: str
    backend_right: bool
    right: bool
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """The accuracy gate's verdict.

    Attributes:
        passed: whether the engine may be used; true where there was nothing to judge.
        decided_by: ``agreement`` (with the graph and with FP32, on pictures without labels), ``drop``, ``interval`` (of the drop),
            ``no limit``, or ``nothing`` where there was nothing to judge.
        max_ap_drop: the points of AP that may be lost; null for no limit.
        budget_was: ``asked`` or ``default``.
        text: the verdict as a clause, for people.
        tried_before: what was built before in the same run and did not pass, a clause each.
    """

    passed: bool
    decided_by: str
    max_ap_drop: float | None
    budget_was: str
    text: str
    tried_before: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class RaceEntry:
    """How one backend did in the race for the fastest.

    Attributes:
        backend: the backend's name.
        version: the version of its runtime; null where it is not installed.
        precision: the precision that it ran in.
        skipped: why it was left out; null where it was timed.
        agreement: whether it found what the graph finds.
        latency: how fast it was.
    """

    backend: str
    version: str | None = None
    precision: str | None = None
    skipped: str | None = None
    agreement: Agreement | None = None
    latency: Latency | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Race:
    """The race that chose the backend.

    Attributes:
        winner: the backend with the lowest median among those that computed right.
        order: all that computed right, the fastest first.
        precision: the precision that the winner ran in.
        graph_sha256: the hash of the graph that was given.
        backends: how each backend did.
    """

    winner: str
    order: tuple[str, ...]
    precision: str
    graph_sha256: str
    backends: tuple[RaceEntry, ...]


@dataclass(frozen=True, slots=True)
class GoldenPicture:
    """A picture that travels with the engine, and what the proven engine found in it.

    Attributes:
        boxes: x_min, y_min, x_max and y_max of each detection, in pixels of the network's input.
        scores: the score of each, 0 to 1.
        class_ids: the class of each, 0-based into the model's class names.
        jpeg: the content of the picture's JPEG file in base64; it has the size of the network's input.
    """

    boxes: tuple[tuple[float, float, float, float], ...]
    scores: tuple[float, ...]
    class_ids: tuple[int, ...]
    jpeg: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Golden:
    """What the golden check compares on a machine of another kind.

    Attributes:
        kind: ``pictures`` for the user's, ``drawn``, or ``none``.
        fingerprint: the machine and the backend that found what is written here.
        why: why there are no pictures, where that was not asked for.
        tolerance: the distance that still counts as the same.
        pictures: the pictures.
        sha256: the hash over all of this; empty where there are no pictures.
    """

    kind: str
    fingerprint: Fingerprint
    why: str = ""
    tolerance: float = 0.0
    pictures: tuple[GoldenPicture, ...] = ()
    sha256: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineRecord:
    """All that is known of an engine: what it is, what it was made from, and what was measured. It is written once, beside the engine.

    Attributes:
        format: the format of this record, ``RECORD_FORMAT``.
        engine: the name of the engine's file.
        engine_sha256: the hash of the engine's file.
        spec: the model: its input, its classes, its anchors.
        backend: what compiled the engine and runs it, a name of ``backends.base.BACKENDS``.
        backend_version: the version of the backend's runtime.
        target: what the engine was built for: SM versions, or the device of the machine that built it.
        precision: ``fp32``, ``fp16`` or ``int8``.
        nms: where boxes are suppressed: ``host``, or ``efficientnms`` for TensorRT's plugin.
        engine_verified: whether the AP was measured by running this very engine.
        gate: the accuracy gate's verdict.
        accuracy: the AP before and after; null where no labelled images were given.
        latency: how fast the engine is; null where it cannot run on the machine that built it.
        reference: the FP32 graph; null where the engine was built from that graph as it is.
        agreement: whether the engine finds what its graph finds; null where it cannot run on the machine that built it.
        proof: in which precision the convolutions run.
        race: how the backends did; null where the backend was named.
        calibration: the calibration images; null where nothing was quantized.
        rewrites: how often each rule of the graph optimizer fired.
        parents: SHA-256 of what the engine was made from, by kind: ``checkpoint``, ``graph``, ``compiled_graph``.
        built_at: when the engine was compiled, ISO 8601 in UTC.
        golden: the pictures that check the engine on other machines.
    """

    format: int = RECORD_FORMAT
    engine: str
    engine_sha256: str
    spec: ModelSpec
    backend: str
    backend_version: str
    target: str
    precision: str
    nms: str = "host"
    engine_verified: bool = False
    gate: Verdict | None = None
    accuracy: Accuracy | None = None
    latency: Latency | None = None
    reference: Reference | None = None
    agreement: Agreement | None = None
    proof: Proof
    race: Race | None = None
    calibration: Calibration | None = None
    rewrites: Mapping[str, int]
    parents: Mapping[str, str]
    built_at: str
    # Last, because the pictures are long and a person reads from the top.
    golden: Golden | None = None

    def __post_init__(self) -> None:
        if self.format != RECORD_FORMAT:
            raise UsageError(f"`format` {self.format} is not the one that this version writes, {RECORD_FORMAT}.")


def record_to_json(record: EngineRecord) -> dict[str, Any]:
    """A record as its file holds it: its fields, and the SHA-256 over them.

    The digest shows that somebody edited a field and did not mean to, or that the file was damaged. It proves nothing against somebody who means it, for
    anybody can work it out; that takes the signature of a bundle (``deploy``).
    """
    # Through text, which is what will be read: bytes of file names that are no text are escaped in it.
    raw = json.loads(json_text(to_json(record)))
    digest, golden = _fields_sha256(raw), raw.pop("golden")
    # The pictures are long, and a person reads from the top.
    return {**raw, DIGEST: digest, "golden": golden}


def record_from_json(raw: Any) -> EngineRecord:
    """Read what ``record_to_json`` wrote, after a trip through JSON. The records of earlier versions and of devices have no digest.

    Raises:
        ValueError: a field is missing, unknown, of another type or makes no sense, or the digest is of other fields; the message says which.
    """
    if not isinstance(raw, Mapping):
        raise ValueError("it holds no object")
    fields = {key: value for key, value in raw.items() if key != DIGEST}
    try:
        record = from_json(EngineRecord, fields)
    except InputError as error:
        raise ValueError(str(error)) from error
    if record.precision not in PRECISIONS:
        raise ValueError(f"precision is {record.precision!r} and none of {', '.join(PRECISIONS)}")
    if DIGEST in raw and raw[DIGEST] != _fields_sha256(fields):
        raise ValueError(f"its fields are not those that its {DIGEST} was worked out of, so somebody has changed it")
    return record


def _fields_sha256(raw: Mapping[str, Any]) -> str:
    # Other programs may order and indent the file as they like.
    return text_sha256(json.dumps(raw, sort_keys=True, separators=(",", ":")))
