"""What an engine has to take and give so that there are boxes in it (docs/architecture.md, "The graph's contract").

The JSON beside an engine says what it is, and its hash that it is the file that the JSON describes. Neither says that it is a detector: a file may
come from anywhere, with a JSON that somebody wrote. What the tensors are is checked once, when the engine is loaded; what comes out, in each run.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from edge_effdet.artifacts import ModelSpec
from edge_effdet.backends.base import Runner
from edge_effdet.errors import EngineError

OUTPUTS = ("boxes", "scores", "class_ids")

MOST_INPUT_BYTES = 2**30
"""An engine whose one run takes more pixels is refused: a fixed batch of millions would take all memory before the first picture."""

_INPUT_TYPES = (np.dtype(np.uint8), np.dtype(np.float16), np.dtype(np.float32))
_OUTPUT_TYPES = {"boxes": np.dtype(np.float32), "scores": np.dtype(np.float32), "class_ids": np.dtype(np.int32)}
_RANKS = {"boxes": 3, "scores": 2, "class_ids": 2}

_REBUILD = "copy both files again or rebuild the engine"


def require_contract(runner: Runner, spec: ModelSpec) -> None:
    """See that a loaded engine has the tensors of a detector.

    Raises:
        EngineError: it takes other tensors than one batch of pictures of the size that ``spec`` says, or gives no boxes, scores and class ids, or
            gives them in other types or shapes.
    """
    if len(runner.inputs) != 1:
        names = ", ".join(each.name for each in runner.inputs) or "none"
        raise EngineError(
            f"The engine has {len(runner.inputs)} inputs ({names}) and a detector takes one batch of pictures, so it is none; {_REBUILD}."
        )
    (taken,) = runner.inputs
    if tuple(taken.shape[1:]) != (3, *spec.image_size):
        raise EngineError(
            f"The engine takes {list(taken.shape[1:])} and its JSON says {[3, *spec.image_size]}, so they do not belong together; "
            f"{_REBUILD}."
        )
    if taken.dtype not in _INPUT_TYPES:
        raise EngineError(f"The engine takes pictures as {taken.dtype} and not as uint8 or float32; {_REBUILD}.")
    size = math.prod(taken.shape[1:]) * max(1, taken.shape[0]) * taken.dtype.itemsize
    if size > MOST_INPUT_BYTES:
        raise EngineError(
            f"The engine takes {taken.shape[0]} pictures a run, which are {size / 2**30:.1f} GiB, and more than "
            f"{MOST_INPUT_BYTES // 2**30} are refused; build one with a smaller `batch_size`."
        )
    given = {output.name: output for output in runner.outputs}
    missing = set(OUTPUTS) - set(given)
    if missing:
        raise EngineError(
            f"The engine has no output {', '.join(sorted(missing))}, so it ends at the head tensors, as export --raw makes it; build one that "
            "gives detections."
        )
    for name in OUTPUTS:
        output = given[name]
        # A runtime that does not know the shape gives no axes.
        if output.dtype != _OUTPUT_TYPES[name] or len(output.shape) not in (0, _RANKS[name]):
            raise EngineError(
                f"The engine gives {name} as {output.dtype} with {len(output.shape)} axes and not as {_OUTPUT_TYPES[name]} with "
                f"{_RANKS[name]}; {_REBUILD}."
            )


def require_outputs(outputs: Mapping[str, np.ndarray], count: int) -> None:
    """See that what a run gave are so many rows of boxes, scores and class ids of one length. It takes a microsecond.

    Args:
        outputs: by the output's name.
        count: how many pictures went in; a fixed batch may give more rows.

    Raises:
        EngineError: they are of other shapes or types.
    """
    boxes, scores, class_ids = (outputs[name] for name in OUTPUTS)
    shape = scores.shape
    fits = (
        len(shape) == 2
        and shape[0] >= count
        and class_ids.shape == shape
        and boxes.shape == (*shape, 4)
        and boxes.dtype == np.float32
        and scores.dtype == np.float32
        and class_ids.dtype == np.int32
    )
    if not fits:
        found = ", ".join(f"{name} {outputs[name].dtype} {list(outputs[name].shape)}" for name in OUTPUTS)
        raise EngineError(
            f"The engine returned {found} for {count} picture{'s' if count > 1 else ''}, which are no boxes with a score and a class each; "
            "build it again."
        )
