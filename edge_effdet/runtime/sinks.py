"""Writers of detections: annotated pictures, an annotated video, JSON, JSON lines, COCO results. Files are written atomically.

``close`` completes a sink's file, also after an interruption: the file then holds all frames up to it. Where none came, there is no file,
and that of an earlier run stays.
"""

from __future__ import annotations

import contextlib
import json
import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np

from edge_effdet.artifacts import Detections, ModelSpec, atomic_output, json_text, printable, write_json
from edge_effdet.artifacts.files import file_identity, folded, writing_failed
from edge_effdet.cli import print_result
from edge_effdet.errors import InputError, MissingDependency, UsageError, first_line
from edge_effdet.runtime.pipeline import FrameResult
from edge_effdet.runtime.sources import ImageFiles, Source

logger = logging.getLogger("edge_effdet.runtime.sinks")

RESULTS = ("auto", "json", "jsonl", "coco", "none")

_MILLISECONDS = 1000
_CAMERA_RATE = 25


class Sink(Protocol):
    """Writes the results of a pipeline, one frame after the other; ``close`` completes its file."""

    def write(self, found: FrameResult) -> None: ...

    def close(self) -> None: ...


class AnnotatedPictures:
    """Writes one JPEG for each frame. If a JPEG cannot be written the run goes on, because other sinks keep the results.

    Attributes:
        written, failed: number of pictures that were written, and that could not be written.
    """

    def __init__(self, folder: Path, names: Mapping[str, str], spec: ModelSpec) -> None:
        """``names`` maps the name of a frame to a file name in ``folder``."""
        self._folder, self._names, self._spec = folder, names, spec
        self.written = self.failed = 0

    def write(self, found: FrameResult) -> None:
        from edge_effdet.runtime.drawing import save_annotated

        if found.detections is None or found.image is None:
            return
        try:
            path = self._folder / self._names[found.frame.name]
            save_annotated(path, found.image, found.detections, self._spec)
            self.written += 1
        except InputError as error:
            self.failed += 1
            # Logged once: on a full disk every picture fails.
            if self.failed == 1:
                logger.warning("%s", error)

    def close(self) -> None:
        """Raise InputError if a picture could not be written."""
        if self.failed:
            raise InputError(
                f"{self.failed} of {self.failed + self.written} annotated pictures could not be written into {self._folder}, as "
                "was said of the first; the results of all were kept."
            )


class AnnotatedVideo:
    """Writes a video with the frames' own times: H.264 if this FFmpeg has it, else MPEG-4."""

    def __init__(self, path: Path, spec: ModelSpec, rate: float | None) -> None:
        """``rate`` is in frames per second, None if unknown. Nothing is written before the first frame. Raises MissingDependency."""
        try:
            import av
        except ModuleNotFoundError as error:
            raise MissingDependency("av", "video", "to write a video") from error
        self._av: Any = av
        self._path, self._spec = path, spec
        self._rate = Fraction(rate or _CAMERA_RATE).limit_denominator(1001)
        self._open = contextlib.ExitStack()
        self._container: Any = None
        self._last = -1

    def write(self, found: FrameResult) -> None:
        from edge_effdet.runtime.drawing import draw_detections

        if found.detections is None or found.image is None:
            return
        picture = draw_detections(found.image, found.detections, self._spec)
        with self._said():
            if self._container is None:
                self._container = self._start(picture)
            # 4:2:0 video has even sides, and a camera that was opened again may send another size.
            frame = self._av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame = frame.reformat(self._stream.width, self._stream.height, "yuv420p")
            # Times must increase from frame to frame.
            self._last = max(self._last + 1, round(_MILLISECONDS * (found.frame.seconds or 0.0)))
            frame.pts, frame.time_base = self._last, Fraction(1, _MILLISECONDS)
            self._container.mux(self._stream.encode(frame))

    def close(self) -> None:
        if self._container is None:
            return
        with self._open, self._said():
            self._container.mux(self._stream.encode(None))
            self._container.close()

    def _start(self, picture: np.ndarray) -> Any:
        temporary = self._open.enter_context(atomic_output(self._path))
        codec = "libx264" if "libx264" in self._av.codecs_available else "mpeg4"
        container = self._av.open(str(temporary), "w", format="mp4")
        self._stream = container.add_stream(codec, rate=self._rate)
        self._stream.height, self._stream.width = (side + side % 2 for side in picture.shape[:2])
        self._stream.pix_fmt = "yuv420p"
        self._stream.codec_context.time_base = Fraction(1, _MILLISECONDS)
        return container

    @contextlib.contextmanager
    def _said(self) -> Any:
        try:
            yield
        except OSError as error:
            raise writing_failed(self._path, error) from error
        except self._av.error.FFmpegError as error:
            raise InputError(f"Writing {self._path} failed ({first_line(error)}); give another `output`.") from error


class _TextFile:
    """A text file that gets its name when it is closed, if anything was written. Where that fails a line may have been written in part, and the
    file does not get its name."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._open = contextlib.ExitStack()
        self._stream: IO[str] | None = None

    def write(self, text: str) -> None:
        try:
            if self._stream is None:
                temporary = self._open.enter_context(atomic_output(self._path))
                self._stream = self._open.enter_context(temporary.open("w", encoding="utf-8"))
            self._stream.write(text)
        except OSError as error:
            failure = writing_failed(self._path, error)
            self._open.callback(_fail, failure)
            raise failure from error

    def close(self) -> None:
        self._open.close()


def _fail(error: InputError) -> None:
    raise error


class JsonLines:
    """Writes one line of JSON for each frame, for videos and cameras of any length. Without a path each line is printed at once."""

    def __init__(self, path: Path | None, spec: ModelSpec) -> None:
        self._spec = spec
        self._file = None if path is None else _TextFile(path)

    def write(self, found: FrameResult) -> None:
        row: dict[str, Any] = (
            {"image": found.frame.name, "problem": found.problem}
            if found.detections is None
            else detections_to_json(found.frame.name, found.detections, self._spec)
        )
        if found.frame.seconds is not None:
            row["seconds"] = round(found.frame.seconds, 3)
        if self._file is None:
            print_result(json_text(row, ascii_only=True))
        else:
            self._file.write(json_text(row) + "\n")

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


class CocoResults:
    """Writes a COCO result list. The image id is the file's name without suffix, as a number if it is one."""

    def __init__(self, path: Path, spec: ModelSpec) -> None:
        self._spec, self._file = spec, _TextFile(path)
        self._before = ""

    def write(self, found: FrameResult) -> None:
        if found.detections is None:
            return
        self._before = self._before or "["
        stem = Path(found.frame.name).stem
        image_id = int(stem) if stem.isdecimal() else stem
        boxes = found.detections.boxes.astype(np.float64)
        scores, class_ids = found.detections.scores.tolist(), found.detections.class_ids.tolist()
        rows = zip(boxes.tolist(), scores, class_ids, _track_ids(found.detections), strict=True)
        for (x_min, y_min, x_max, y_max), score, class_id, track_id in rows:
            row = {
                "image_id": image_id,
                "category_id": self._spec.category_ids[class_id],
                "bbox": [round(value, 3) for value in (x_min, y_min, x_max - x_min, y_max - y_min)],
                "score": round(score, 6),
            }
            if track_id >= 0:
                row["track_id"] = track_id
            self._file.write(f"{self._before}\n{json_text(row)}")
            self._before = ","

    def close(self) -> None:
        with contextlib.closing(self._file):
            if self._before:
                self._file.write("[]\n" if self._before == "[" else "\n]\n")


class JsonObject:
    """Collects all results in memory and writes them as one JSON object, for image files.

    Attributes:
        data: the object as it is so far.
    """

    def __init__(self, path: Path | None, spec: ModelSpec, head: Mapping[str, Any]) -> None:
        """``path`` is None to write no file; ``head`` holds the first entries of the object."""
        self._path, self._spec = path, spec
        self.data: dict[str, Any] = {**head, "images": [], "skipped": []}

    def write(self, found: FrameResult) -> None:
        if found.detections is None:
            self.data["skipped"].append({"image": found.frame.name, "problem": found.problem})
        else:
            self.data["images"].append(detections_to_json(found.frame.name, found.detections, self._spec))

    def close(self) -> None:
        if self._path is not None and (self.data["images"] or self.data["skipped"]):
            write_json(self._path, self.data)


def detections_to_json(image: Path | str, detections: Detections, spec: ModelSpec) -> dict[str, Any]:
    """One picture's detections as an object for JSON; boxes are xyxy in pixels of the original.

    An object that is tracked has a ``track_id``.
    """
    scores, class_ids = detections.scores.tolist(), detections.class_ids.tolist()
    return {
        "image": str(image),
        "detections": [
            {
                "box": [round(value, 2) for value in box],
                "score": round(score, 4),
                "class": spec.class_names[class_id],
                "class_id": class_id,
                "category_id": spec.category_ids[class_id],
                **({"track_id": track_id} if track_id >= 0 else {}),
            }
            for box, score, class_id, track_id in zip(
                detections.boxes.tolist(), scores, class_ids, _track_ids(detections), strict=True
            )
        ],
    }


def _track_ids(detections: Detections) -> list[int]:
    """The number of each object, -1 where it has none."""
    return [-1] * len(detections) if detections.track_ids is None else detections.track_ids.tolist()


def picture_names(sources: Sequence[Path]) -> dict[Path, str]:
    """A file name for each annotated picture, unique also where case is ignored: the picture's name with the suffix .jpg in place of its
    own, or after it where two pictures differ in nothing else."""
    full: set[Path] = set()
    while True:
        names = {path: path.name if path in full else path.stem for path in sources}
        counts = Counter(map(folded, names.values()))
        alike = {path for path, name in names.items() if counts[folded(name)] > 1} - full
        if not alike:
            return {path: f"{name}.jpg" for path, name in names.items()}
        full |= alike


def results_name(source: Source) -> str:
    """The name of the file of results, without the suffix that tells its form: for pictures ``detections``, for a video its file name with
    its suffix, since videos may differ in nothing else, and for a camera its name, as far as a file's name reaches."""
    if isinstance(source, ImageFiles):
        return "detections"
    name = printable(Path(source.name).name if "://" not in source.name else source.name.split("://", 1)[1])
    name = "".join(letter if letter.isalnum() or letter in "-_." else "_" for letter in name).strip("_.") or "camera"
    return shortened(name)


def shortened(name: str) -> str:
    """The beginning of a name, so that a file of it and of what is put before and behind it may have that name, of 255 bytes at most."""
    return name.encode()[:200].decode(errors="ignore")


def video_name(source: Source) -> str:
    """The name of the annotated video."""
    name = results_name(source)
    return name if name.lower().endswith(".mp4") else f"{name}.mp4"


def refuse_other_results(path: Path, source: Source) -> None:
    """Refuse to overwrite results of pictures or of a video that this run does not read.

    Pictures that are gone do not count where this run reads the same folder: programs empty and fill it.

    Args:
        path: a file of results, JSON or JSON lines, which may be there from an earlier run.
        source: what this run reads.

    Raises:
        UsageError: names a picture, or the video, whose results would be lost.
    """
    read = source.paths if isinstance(source, ImageFiles) else [Path(source.name)]
    names = {printable(str(each)) for each in (*read, source.name)}
    earlier = [name for name in _named_in(path, isinstance(source, ImageFiles)) if name not in names]
    if not earlier:
        return
    files, folders = {file_identity(each) for each in read}, {file_identity(each.parent) for each in read}
    for name in earlier:
        there, above = file_identity(Path(name)), file_identity(Path(name).parent)
        if there in files if there else above is not None and above in folders:
            continue
        raise UsageError(
            f"{path} holds the results of {name}, which this run would overwrite and does not read; give another `output`, or "
            "delete the file."
        )


def _named_in(path: Path, pictures: bool) -> Iterator[str]:
    """The pictures that a file of results names, or the video; nothing where it is no such file."""
    with (
        contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError),
        path.open(encoding="utf-8") as stream,
    ):
        rows = json.load(stream) if path.suffix == ".json" else None
        entries = (*rows["images"], *rows.get("skipped", ())) if rows is not None else map(json.loads, stream)
        for entry in entries:
            name = str(entry["image"])
            if not pictures:
                # All frames are of one video.
                yield name.rpartition("#")[0]
                return
            yield name
