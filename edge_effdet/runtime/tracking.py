"""Objects that keep their number from frame to frame of a video or a camera.

Each class has a tracker of its own, so that an object never takes over the number of one of another class. The tracker is ByteTrack (Zhang et
al., arXiv 2110.06864) of the package trackforge: it predicts where each known object is in the next frame, matches boxes of high score with the
predictions by their overlap, and then boxes of low score with what is left.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from edge_effdet.errors import MissingDependency, UsageError
from edge_effdet.options import option

if TYPE_CHECKING:
    from edge_effdet.artifacts import Detections, Size
    from edge_effdet.runtime.sources import Source

_MOST_NUMBERS = 1000
"""Numbers that are remembered before those of objects that are gone are forgotten."""


@dataclass(frozen=True, kw_only=True)
class TrackOptions:
    """How objects are followed from frame to frame.

    Raises:
        UsageError: a number makes no sense.
    """

    track: bool = option(
        False, help="give each object of a video or a camera a number that it keeps from frame to frame"
    )
    track_score: float = option(0.5, help="an object is followed from this score on, and then at any lower score")
    track_frames: int = option(30, help="so many frames an object may be out of sight and keep its number")
    track_overlap: float = option(
        0.1, help="a box is taken for the known object whose predicted box it overlaps by this or more (IoU)"
    )

    def __post_init__(self) -> None:
        for name in ("track_score", "track_overlap"):
            if not 0 < getattr(self, name) <= 1:
                raise UsageError(f"`{name}` {getattr(self, name)} makes no sense; give a number above 0 and up to 1.")
        if not 1 <= self.track_frames <= 100_000:
            raise UsageError(f"`track_frames` {self.track_frames} makes no sense; give 1 to 100000.")


def refuse_pictures(options: TrackOptions, source: Source) -> None:
    """Refuse to follow objects through pictures that are no frames of one scene.

    Raises:
        UsageError: the source is a picture or a folder of pictures, and ``options`` ask for tracking.
    """
    from edge_effdet.runtime.sources import ImageFiles

    if options.track and isinstance(source, ImageFiles):
        raise UsageError(
            f"{source.name} holds pictures and no frames of a video, so no object can be followed in it; leave `track` out, or give a video or a "
            "camera."
        )


def make_tracker(options: TrackOptions) -> Tracker | None:
    """A tracker for one source; None where ``options`` ask for none.

    Raises:
        MissingDependency: trackforge is not installed.
    """
    return Tracker(options) if options.track else None


class Tracker:
    """Gives the objects of one source their numbers, which begin with 1 and are never given to another object."""

    def __init__(self, options: TrackOptions) -> None:
        """See ``make_tracker``."""
        try:
            import trackforge
        except ModuleNotFoundError as error:
            raise MissingDependency("trackforge", "track", "to follow objects") from error
        self._library: Any = trackforge
        self._options = options
        self._by_class: dict[int, Any] = {}
        # Each object by what its class and the tracker of that call it: its number, and the frame in which it was seen last.
        self._known: dict[tuple[int, int], tuple[int, int]] = {}
        self._given = self._frame = 0
        self._size: Size | None = None

    def update(self, detections: Detections, size: Size) -> Detections:
        """Number the objects of the next frame.

        Args:
            detections: what was found in it.
            size: its height and width. Where they change, as when a camera is opened again, all objects count as new.

        Returns:
            The same detections with ``track_ids``, which are -1 for an object of a low score that matches no known one.
        """
        import numpy as np

        if size != self._size:
            self._by_class.clear()
            self._known.clear()
            self._size = size
        self._frame += 1
        left, top, right, bottom = detections.boxes.T.tolist()
        scores, class_ids = detections.scores.tolist(), detections.class_ids.tolist()
        names: list[tuple[int, int] | None] = [None] * len(detections)
        # A class of which nothing is seen has to be told so too.
        for class_id in {*self._by_class, *class_ids}:
            rows = [row for row, other in enumerate(class_ids) if other == class_id]
            given = [
                ([left[row], top[row], right[row] - left[row], bottom[row] - top[row]], scores[row], class_id)
                for row in rows
            ]
            if class_id not in self._by_class:
                self._by_class[class_id] = self._new()
            for name, _, _, _, place in self._by_class[class_id].update(given):
                if place is not None:
                    names[rows[place]] = (class_id, name)
        numbers = [-1 if name is None else self._number(name) for name in names]
        if len(self._known) > _MOST_NUMBERS:
            oldest = self._frame - self._options.track_frames - 1
            self._known = {name: entry for name, entry in self._known.items() if entry[1] >= oldest}
        return replace(detections, track_ids=np.array(numbers, np.int32).reshape(len(detections)))

    def _new(self) -> Any:
        options = self._options
        # It limits the distance, which is 1 less the overlap.
        distance = 1 - options.track_overlap
        return self._library.BYTETRACK(
            track_thresh=options.track_score,
            det_thresh=options.track_score,
            track_buffer=options.track_frames,
            match_thresh=distance,
            second_match_thresh=distance,
        )

    def _number(self, name: tuple[int, int]) -> int:
        if name in self._known:
            number = self._known[name][0]
        else:
            self._given += 1
            number = self._given
        self._known[name] = (number, self._frame)
        return number
