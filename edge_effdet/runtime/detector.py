"""``Detector``: an engine that is loaded, from pictures to boxes. The one path that every verb takes on the device.

from edge_effdet import Detector

with Detector.load("engines/quickstart.fp32.onnx") as detector:
    for found in detector(["a.jpg", "b.jpg"]):
        for box, score, class_id in zip(found.boxes, found.scores, found.class_ids):
            print(detector.spec.class_names[class_id], score, box)
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from types import TracebackType
from typing import overload

import numpy as np
from PIL import Image

from edge_effdet.artifacts import Detections, Engine, ModelSpec, Size, load_engine
from edge_effdet.backends.base import LoadOptions, Runner, TensorSpec, load_runner
from edge_effdet.errors import DataError, UsageError
from edge_effdet.options import option
from edge_effdet.runtime.contract import OUTPUTS, require_contract, require_outputs
from edge_effdet.runtime.golden import require_same_results
from edge_effdet.runtime.images import open_picture
from edge_effdet.runtime.limits import MAX_PIXELS
from edge_effdet.runtime.nms import NMS_KINDS
from edge_effdet.runtime.postprocess import detections_from_outputs
from edge_effdet.runtime.preprocess import fill_input

logger = logging.getLogger("edge_effdet.runtime.detector")

Picture = str | PathLike[str] | bytes | np.ndarray | Image.Image
"""A file, the content of one, an array uint8 [height, width, 3] in RGB, or a Pillow image."""

REDUCED_DECODE = {"off": None, "close": 2, "fast": 1}
"""How many times the size that the letterbox needs a reduced JPEG keeps at least."""


@dataclass(frozen=True, slots=True)
class DetectOptions:
    """How pictures are decoded and which of the engine's boxes are kept.

    Raises:
        UsageError: a number or a name makes no sense.
    """

    score_threshold: float = option(0.3, help="lower scores are dropped")
    nms_kind: str = option("class-aware", help="what becomes of boxes that overlap", choices=NMS_KINDS)
    iou_threshold: float = option(0.5, help="above this overlap two boxes are one")
    max_detections: int = option(100, help="at most so many in one image")
    reduced_decode: str = option(
        "off",
        help="let the JPEG decoder make a picture smaller: close leaves twice the size that the engine's input needs or more, "
        "and fast the size or more; neither gives the exact pixels",
        choices=tuple(REDUCED_DECODE),
    )

    def __post_init__(self) -> None:
        if not 0 <= self.score_threshold <= 1:
            raise UsageError(f"`score_threshold` {self.score_threshold} is not between 0 and 1; 0.3 is usual.")
        if not 0 < self.iou_threshold <= 1:
            raise UsageError(f"`iou_threshold` {self.iou_threshold} is not between 0 and 1; 0.5 is usual.")
        if self.max_detections < 1:
            raise UsageError(f"`max_detections` {self.max_detections} makes no sense; give at least 1.")
        if self.reduced_decode not in REDUCED_DECODE:
            raise UsageError(f"There is no `reduced_decode` {self.reduced_decode}; give {', '.join(REDUCED_DECODE)}.")
        if self.nms_kind not in NMS_KINDS:
            raise UsageError(f"There is no `nms_kind` {self.nms_kind}; the kinds are {', '.join(NMS_KINDS)}.")


class Detector:
    """An engine that is loaded, with memory for its input that is used again; a context manager.

    Any number of threads may call one detector. On a backend whose runner takes one run at a time they wait for each other
    there, and decode and suppress at the same time.

    Attributes:
        spec: names the classes; ``spec.image_size`` is height and width of the engine's input.
        options: thresholds and the kind of NMS.
        batch_size: images that go into one run of the engine.
    """

    def __init__(
        self, runner: Runner, spec: ModelSpec, options: DetectOptions | None = None, batch_size: int | None = None
    ) -> None:
        """Take a runner that is loaded, and close it in the end. See ``load``.

        Raises:
            UsageError: an option makes no sense, or the engine has a fixed batch that is another than ``batch_size``.
            EngineError: the engine is not what its JSON says.
        """
        self.spec = spec
        self.options = options or DetectOptions()
        self._runner = runner
        require_contract(runner, spec)
        (self._input,) = runner.inputs
        fixed = self._input.shape[0]
        if batch_size is not None and batch_size < 1:
            raise UsageError(f"A batch of {batch_size} images makes no sense; give at least 1.")
        if fixed > 0 and batch_size not in (None, fixed):
            raise UsageError(
                f"The engine takes {fixed} image{'s' if fixed > 1 else ''} a run and not {batch_size}; build one with "
                f"`batch_size` {batch_size}."
            )
        self._fixed = fixed > 0
        self.batch_size = fixed if fixed > 0 else batch_size or 1
        self._one_run: AbstractContextManager[object] = nullcontext() if runner.concurrent else threading.Lock()
        self._spare: list[np.ndarray] = []

    @classmethod
    def load(
        cls,
        engine: str | PathLike[str] | Engine,
        *,
        threads: int = 0,
        score_threshold: float | None = None,
        options: DetectOptions | None = None,
        batch_size: int | None = None,
        loading: LoadOptions | None = None,
        run_limit: float | None = None,
        self_check: bool = True,
    ) -> Detector:
        """Open an engine that ``build_engine`` wrote, verify its hash, load it, and see that it finds here what it found there.

        The last is the golden check (``golden``): at the first load on each kind of machine the engine's own pictures are run, which
        takes as long as a few runs. Later loads remember the answer.

        Args:
            engine: the file, with its JSON beside it.
            threads: of a CPU backend; 0 for the physical cores that this process may use.
            score_threshold: lower scores are dropped; in place of the one in ``options``.
            options: thresholds and NMS.
            batch_size: images a run, for an engine with a dynamic batch: no more than it was built for. One where None.
            loading: more than ``threads`` to say of a CPU backend.
            run_limit: seconds that a run may take, the golden check's too, for an engine that may hang; in place of the one in ``loading``. 0
                for no limit.
            self_check: False to leave the golden check out, which is logged.

        Raises:
            EngineError: the engine or its JSON is missing or damaged, or they do not belong together, or the engine finds other
                objects on this machine than where it was proven.
            BackendUnavailable: what runs it does not work here.
            UsageError: see ``__init__``.
        """
        found = engine if isinstance(engine, Engine) else load_engine(Path(engine))
        options = options or DetectOptions()
        if score_threshold is not None:
            options = replace(options, score_threshold=score_threshold)
        loading = loading or LoadOptions()
        if threads:
            loading = replace(loading, threads=threads)
        if run_limit is not None:
            loading = replace(loading, run_limit=run_limit)
        runner = load_runner(found, loading)
        try:
            detector = cls(runner, found.spec, options, batch_size)
            require_same_results(runner, found, wanted=self_check)
            return detector
        except BaseException:
            runner.close()
            raise

    @overload
    def __call__(self, pictures: Picture) -> Detections: ...

    @overload
    def __call__(self, pictures: Sequence[Picture]) -> list[Detections]: ...

    def __call__(self, pictures: Picture | Sequence[Picture]) -> Detections | list[Detections]:
        """Find objects in a picture, or in each of several.

        Args:
            pictures: one ``Picture``, or a list of them of any sizes; uint8 [B, height, width, 3] is a list too.

        Returns:
            One entry a picture, boxes in its pixels.

        Raises:
            DataError: a picture cannot be decoded, or is none. ``pipeline.Pipeline`` goes on where this ends.
            EngineError: the engine failed.
        """
        if isinstance(pictures, str | PathLike | bytes | Image.Image):
            return self._detect([pictures])[0]
        if isinstance(pictures, np.ndarray) and pictures.ndim != 4:
            return self._detect([pictures])[0]
        return self._detect(list(pictures))

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """The outputs of ``run``."""
        return self._runner.outputs

    @property
    def usable(self) -> bool:
        """Whether the engine can still run: False after a run that hangs and could not be ended within ``LoadOptions.run_limit``."""
        return self._runner.usable

    def read(
        self, picture: Picture, whole: bool = True, most_pixels: int = MAX_PIXELS
    ) -> tuple[np.ndarray | Image.Image, Size]:
        """Decode a picture, for ``prepare``, and say what height and width it has.

        Args:
            picture: what is decoded.
            whole: False where the picture is for ``prepare`` alone; a large file (``limits.LARGE_PIXELS``) is then scaled down at once, to the same
                pixels.
            most_pixels: a file with more pixels is refused before it is decoded; fewer where anybody may send one.

        Raises:
            DataError: it cannot be decoded, or is none, or is too large.
            NotEnoughMemory: the system gives no more memory, which says nothing of the picture.
        """
        if isinstance(picture, np.ndarray):
            if picture.ndim != 3 or picture.shape[2] != 3 or picture.dtype != np.uint8 or 0 in picture.shape:
                raise DataError(
                    f"A picture is uint8 [height, width, 3] in RGB and not {picture.dtype} {list(picture.shape)}; convert it."
                )
            return picture, (picture.shape[0], picture.shape[1])
        if isinstance(picture, Image.Image):
            if 0 in picture.size:
                raise DataError(f"A picture of {picture.width}x{picture.height} pixels has none; give another.")
            return picture if picture.mode == "RGB" else picture.convert("RGB"), (picture.height, picture.width)
        source = picture if isinstance(picture, bytes) else Path(picture)
        kept = REDUCED_DECODE[self.options.reduced_decode]
        height, width = self.spec.image_size
        reduce_to = None if kept is None else (kept * height, kept * width)
        return open_picture(source, reduce_to, None if whole else (height, width), most_pixels)

    @contextmanager
    def input_buffer(self) -> Iterator[np.ndarray]:
        """Memory for the pictures of one run, uint8 [batch_size, 3, H, W], taken back at the end of the block."""
        try:
            # One operation, so that no two threads get the same.
            buffer = self._spare.pop()
        except IndexError:
            buffer = np.zeros((self.batch_size, 3, *self.spec.image_size), np.uint8)
        try:
            yield buffer
        finally:
            self._spare.append(buffer)

    def prepare(self, picture: np.ndarray | Image.Image, size: Size, row: np.ndarray) -> None:
        """Letterbox a picture that ``read`` gave, with its size, into one row of ``input_buffer``."""
        fill_input(picture, row, self.spec.preprocess, size)

    def run(self, buffer: np.ndarray, count: int) -> Mapping[str, np.ndarray]:
        """Run the engine on the first ``count`` rows of an ``input_buffer``, or on all where its batch is fixed.

        Returns:
            The graph's outputs, with at least ``count`` rows.

        Raises:
            EngineError: it failed, took longer than ``LoadOptions.run_limit``, or gave something else than boxes.
        """
        batch = buffer if self._fixed else buffer[:count]
        with self._one_run:
            outputs = self._runner.run({self._input.name: batch.astype(self._input.dtype, copy=False)})
        require_outputs(outputs, count)
        return outputs

    def finish(
        self, outputs: Mapping[str, np.ndarray], row: int, size: Size, options: DetectOptions | None = None
    ) -> Detections:
        """Detections of one row of the outputs, in pixels of the original of this height and width.

        ``options`` is for one picture that is to be suppressed in another way than ``self.options`` says.
        """
        boxes, scores, class_ids = (outputs[name][row] for name in OUTPUTS)
        options = options or self.options
        return detections_from_outputs(
            boxes,
            scores,
            class_ids,
            size,
            self.spec.image_size,
            options.score_threshold,
            options.iou_threshold,
            options.max_detections,
            options.nms_kind,
            self.spec.num_classes,
        )

    def _detect(self, pictures: Sequence[Picture]) -> list[Detections]:
        found: list[Detections] = []
        with self.input_buffer() as buffer:
            for start in range(0, len(pictures), self.batch_size):
                sizes = []
                for row, picture in enumerate(pictures[start : start + self.batch_size]):
                    decoded, size = self.read(picture, whole=False)
                    self.prepare(decoded, size, buffer[row])
                    # While the next one is decoded this one would still be held.
                    del decoded
                    sizes.append(size)
                outputs = self.run(buffer, len(sizes))
                found += [self.finish(outputs, row, size) for row, size in enumerate(sizes)]
        return found

    def close(self) -> None:
        """Free what the engine holds. A detector that is closed cannot be used again."""
        self._runner.close()
        self._spare.clear()

    def __enter__(self) -> Detector:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def detect_image(runner: Runner, image: np.ndarray, spec: ModelSpec, score_threshold: float) -> Detections:
    """Find objects in one picture.

    Args:
        runner: a loaded engine with the graph's contract.
        image: uint8 [height, width, 3], RGB.
        spec: the engine's.
        score_threshold: lower scores are dropped.
    """
    return Detector(runner, spec, DetectOptions(score_threshold))(image)
