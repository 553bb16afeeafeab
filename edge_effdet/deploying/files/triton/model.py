"""A model of Triton Inference Server's Python backend: pictures in, boxes out, or one of the two ends around an engine that Triton itself runs.

``deploy --format triton`` copies this file into each model of Python that it writes. The parameter ``part`` of the model's config says what the
model does:

    detect   IMAGE -> BOXES, SCORES, CLASS_IDS, COUNTS    with the engine in the model's folder
    decode   IMAGE -> images, SIZES                       in front of a TensorRT plan
    boxes    boxes, scores, class_ids, SIZES -> BOXES, SCORES, CLASS_IDS, COUNTS    behind it

Triton hands over several requests at once, which its dynamic batcher put together; each may have several pictures. What is wrong with one request
is answered to that one alone.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from edge_effdet.artifacts import Detections, Engine, ModelSpec, Size, engine_json_path, load_engine
from edge_effdet.backends.cores import usable_cores
from edge_effdet.cli import name_flags
from edge_effdet.errors import EdgeEffDetError, EngineError, NotEnoughMemory, UsageError
from edge_effdet.runtime.contract import OUTPUTS
from edge_effdet.runtime.detector import REDUCED_DECODE, DetectOptions, Detector
from edge_effdet.runtime.images import open_picture
from edge_effdet.runtime.pipeline import loading_for_many
from edge_effdet.runtime.postprocess import detections_from_outputs
from edge_effdet.runtime.preprocess import fill_input
from edge_effdet.serving.protocol import pack_detections

CHANGEABLE = ("score_threshold", "max_detections")
"""The parameters of a request that count, in place of those of the model."""

Tensors = Mapping[str, np.ndarray]
Prepared = tuple[np.ndarray, Size]
"""A picture as the engine takes it, uint8 [3, H, W], and the height and width of the original."""


class TritonPythonModel:
    """What Triton's Python backend starts, calls and ends."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Load what the model needs. What goes wrong is the reason that Triton gives for not having loaded the model."""
        logging.getLogger("edge_effdet").addHandler(_TritonLog())
        logging.getLogger("edge_effdet").setLevel(logging.INFO)
        config = json.loads(args["model_config"])
        try:
            _refuse_foreign_numpy()
            self._part = _PARTS[config["parameters"]["part"]["string_value"]](
                Path(args["model_repository"], args["model_version"]), config
            )
        except EdgeEffDetError as error:
            raise pb_utils.TritonModelException(_plain(error)) from None

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Answer requests, one response each, in their order."""
        answers = self._part.answer(requests)
        return [
            _refusal(answer)
            if isinstance(answer, EdgeEffDetError)
            else pb_utils.InferenceResponse([pb_utils.Tensor(name, array) for name, array in answer.items()])
            for answer in answers
        ]

    def finalize(self) -> None:
        """Free the engine and end the threads."""
        self._part.close()


@dataclass(frozen=True, slots=True)
class _Asked:
    """A picture of a request, and what the request asks for."""

    picture: bytes
    options: DetectOptions


class _Decoding:
    """The part ``decode``."""

    def __init__(self, folder: Path, config: Mapping[str, Any]) -> None:
        parameters = _parameters(config)
        self._dtype = np.dtype(parameters["input_dtype"])
        self._decoder = _Decoder(_read_spec(folder), parameters["reduced_decode"])
        self._pool = ThreadPoolExecutor(_share_of_cores(usable_cores(), config))

    def answer(self, requests: Sequence[Any]) -> list[Tensors | EdgeEffDetError]:
        pictures = [_pictures(request) for request in requests]
        prepared = iter(list(self._pool.map(self._decoder.prepare, [each for group in pictures for each in group])))
        return [_all_or_error([next(prepared) for _ in group], self._pack) for group in pictures]

    def _pack(self, prepared: Sequence[Prepared]) -> Tensors:
        images = np.stack([row for row, _ in prepared]).astype(self._dtype, copy=False)
        return {"images": images, "SIZES": np.array([size for _, size in prepared], np.int32)}

    def close(self) -> None:
        self._pool.shutdown()


class _Suppressing:
    """The part ``boxes``."""

    def __init__(self, folder: Path, config: Mapping[str, Any]) -> None:
        self._options, self._spec = _detect_options(_parameters(config)), _read_spec(folder)

    def answer(self, requests: Sequence[Any]) -> list[Tensors | EdgeEffDetError]:
        return [self._answer_one(request) for request in requests]

    def _answer_one(self, request: Any) -> Tensors | EdgeEffDetError:
        try:
            options = _asked_options(request, self._options)
            outputs = {name: _tensor(request, name) for name in OUTPUTS}
            sizes = [(int(height), int(width)) for height, width in _tensor(request, "SIZES")]
            return pack_detections([self._finish(outputs, row, size, options) for row, size in enumerate(sizes)])
        except EdgeEffDetError as error:
            return error

    def _finish(self, outputs: Tensors, row: int, size: Size, options: DetectOptions) -> Detections:
        boxes, scores, class_ids = (outputs[name][row] for name in OUTPUTS)
        return detections_from_outputs(
            boxes,
            scores,
            class_ids,
            size,
            self._spec.image_size,
            options.score_threshold,
            options.iou_threshold,
            options.max_detections,
            options.nms_kind,
            self._spec.num_classes,
        )

    def close(self) -> None:
        pass


class _Detecting:
    """The part ``detect``."""

    def __init__(self, folder: Path, config: Mapping[str, Any]) -> None:
        parameters = _parameters(config)
        engine = _only_engine(folder)
        self._options = _detect_options(parameters)
        loading = loading_for_many(engine.backend, int(parameters["threads"]))
        runs = _share_of_cores(loading.parallel_runs, config)
        loading = replace(loading, parallel_runs=runs)
        batch = int(parameters["run_batch"]) or None
        self._detector = Detector.load(engine, options=self._options, batch_size=batch, loading=loading)
        self._decoder = _Decoder(engine.spec, self._options.reduced_decode)
        self._pool = ThreadPoolExecutor(max(runs, _share_of_cores(usable_cores(), config)))

    def answer(self, requests: Sequence[Any]) -> list[Tensors | EdgeEffDetError]:
        asked = [self._read(request) for request in requests]
        found = iter(self._find([each for places in asked if isinstance(places, list) for each in places]))
        return [
            _all_or_error([next(found) for _ in places], pack_detections) if isinstance(places, list) else places
            for places in asked
        ]

    def _read(self, request: Any) -> list[_Asked] | EdgeEffDetError:
        try:
            options = _asked_options(request, self._options)
        except EdgeEffDetError as error:
            return error
        return [_Asked(picture, options) for picture in _pictures(request)]

    def _find(self, asked: Sequence[_Asked]) -> list[Detections | EdgeEffDetError]:
        """What is found in each picture, or why that is not known, by as many threads as there are cores; the engine lets in as many as it runs at once."""
        batch = self._detector.batch_size
        if batch == 1:
            return list(self._pool.map(self._find_one, asked))
        results: list[Any] = list(self._pool.map(self._decoder.prepare, [each.picture for each in asked]))
        good = [number for number, each in enumerate(results) if not isinstance(each, EdgeEffDetError)]
        runs = [good[start : start + batch] for start in range(0, len(good), batch)]
        rows = [[(results[number], asked[number].options) for number in run] for run in runs]
        for run, found in zip(runs, self._pool.map(self._run, rows), strict=True):
            for number, each in zip(run, found, strict=True):
                results[number] = each
        return results

    def _find_one(self, asked: _Asked) -> Detections | EdgeEffDetError:
        prepared = self._decoder.prepare(asked.picture)
        return prepared if isinstance(prepared, EdgeEffDetError) else self._run([(prepared, asked.options)])[0]

    def _run(self, rows: Sequence[tuple[Prepared, DetectOptions]]) -> Sequence[Detections | EdgeEffDetError]:
        detector = self._detector
        try:
            with detector.input_buffer() as buffer:
                for place, ((row, _), _) in zip(buffer, rows, strict=False):
                    place[:] = row
                outputs = detector.run(buffer, len(rows))
            return [detector.finish(outputs, number, size, options) for number, ((_, size), options) in enumerate(rows)]
        except EdgeEffDetError as error:
            return [error] * len(rows)

    def close(self) -> None:
        self._pool.shutdown()
        self._detector.close()


_PARTS: Mapping[str, Callable[[Path, Mapping[str, Any]], Any]] = {
    "detect": _Detecting,
    "decode": _Decoding,
    "boxes": _Suppressing,
}


class _Decoder:
    """Decodes pictures and lays them into the network's input."""

    def __init__(self, spec: ModelSpec, reduced_decode: str) -> None:
        self._spec, kept = spec, REDUCED_DECODE[reduced_decode]
        height, width = spec.image_size
        self._reduce_to = None if kept is None else (kept * height, kept * width)

    def prepare(self, picture: bytes) -> Prepared | EdgeEffDetError:
        try:
            decoded, size = open_picture(picture, self._reduce_to, self._spec.image_size)
        except EdgeEffDetError as error:
            return error
        row = np.empty((3, *self._spec.image_size), np.uint8)
        fill_input(decoded, row, self._spec.preprocess, size)
        return row, size


class _TritonLog(logging.Handler):
    """Hands what edge_effdet logs to Triton's own log."""

    def emit(self, record: logging.LogRecord) -> None:
        text = name_flags(record.getMessage(), {})
        if record.levelno >= logging.ERROR:
            pb_utils.Logger.log_error(text)
        elif record.levelno >= logging.WARNING:
            pb_utils.Logger.log_warn(text)
        else:
            pb_utils.Logger.log_info(text)


def _all_or_error(results: Sequence[Any], pack: Callable[[Any], Tensors]) -> Tensors | EdgeEffDetError:
    """What a request is answered: its results as tensors; or the first error, for a request has one answer for all of its pictures."""
    return next((each for each in results if isinstance(each, EdgeEffDetError)), None) or pack(results)


def _parameters(config: Mapping[str, Any]) -> dict[str, str]:
    return {name: value["string_value"] for name, value in config["parameters"].items()}


def _asked_options(request: Any, options: DetectOptions) -> DetectOptions:
    """The thresholds that a request asks for, else those of the model. Raises UsageError."""
    given = json.loads(request.parameters() or "{}")
    return _changed(options, {name: given[name] for name in CHANGEABLE if name in given}, "The request's parameter")


def _detect_options(parameters: Mapping[str, str]) -> DetectOptions:
    """The thresholds of the model's config. Raises UsageError."""
    names = [item.name for item in fields(DetectOptions)]
    return _changed(DetectOptions(), {name: parameters[name] for name in names}, "The model's parameter")


def _changed(options: DetectOptions, values: Mapping[str, Any], whose: str) -> DetectOptions:
    """Options with other values, each of the type of the one before. Text stands for a number too, since not every client can send a fraction."""
    parsed = {name: _parsed(value, getattr(options, name), f"{whose} {name}") for name, value in values.items()}
    return replace(options, **parsed) if parsed else options


def _parsed(value: Any, before: Any, what: str) -> Any:
    if isinstance(before, str):
        return str(value)
    try:
        number = float(value)
        if isinstance(before, int) and not number.is_integer():
            raise ValueError("it is no whole number")
    except (TypeError, ValueError, OverflowError) as error:
        kind = "whole number" if isinstance(before, int) else "number"
        raise UsageError(f"{what} is {str(value)[:40]!r} and no {kind}; give one.") from error
    return type(before)(number)


def _share_of_cores(count: int, config: Mapping[str, Any]) -> int:
    """What one of the model's processes may have of ``count`` runs or threads."""
    processes = sum(int(group.get("count", 1)) for group in config.get("instance_group", ())) or 1
    return max(1, math.ceil(count / processes))


def _tensor(request: Any, name: str) -> np.ndarray:
    return pb_utils.get_input_tensor_by_name(request, name).as_numpy()


def _pictures(request: Any) -> list[bytes]:
    return [bytes(each) for each in _tensor(request, "IMAGE").reshape(-1)]


def _only_engine(folder: Path) -> Engine:
    """The engine in a version's folder. No path in the config leads to it, so nothing outside of the folder is ever loaded. Raises EngineError."""
    found = sorted(path for path in folder.iterdir() if engine_json_path(path).is_file())
    if len(found) != 1:
        raise EngineError(
            f"{folder} has {len(found)} engines with their JSON beside them and not one; write the model again with python -m edge_effdet.deploy."
        )
    return load_engine(found[0])


def _read_spec(folder: Path) -> ModelSpec:
    return ModelSpec.from_dict(json.loads((folder / "spec.json").read_text(encoding="utf-8")))


def _refusal(error: EdgeEffDetError) -> Any:
    codes = pb_utils.TritonError
    code = {EngineError: codes.INTERNAL, NotEnoughMemory: codes.UNAVAILABLE}.get(type(error), codes.INVALID_ARG)
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(_plain(error), code))


def _plain(error: EdgeEffDetError) -> str:
    """The sentence, with the names of options as they stand in the config."""
    return name_flags(str(error), {})


def _refuse_foreign_numpy() -> None:
    """Raises UsageError where the backend was built for another NumPy: it misreads the size of an array's elements then, and ends at the first request."""
    probe = np.arange(6, dtype=np.float32).reshape(2, 3)
    seen = pb_utils.Tensor.from_dlpack("PROBE", pb_utils.Tensor("PROBE", probe).to_dlpack()).as_numpy()
    if not np.array_equal(seen, probe):
        raise UsageError(
            f"This server's Python backend does not work with NumPy {np.__version__}, whose arrays it misreads; install 'numpy<2' for its Python."
        )
