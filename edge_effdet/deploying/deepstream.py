"""A folder with which DeepStream's nvinfer runs a detector: ``(graph, record, options) -> folder``.

What is in it: the graph with float32 pixels, since nvinfer feeds no bytes; nvinfer's configuration; the names of the classes; a parser of the
outputs in C++, with a Makefile that builds it and the engine on the device; the record of the engine that the graph was measured with.

The facts about nvinfer were read in its sources (NVIDIA/DeepStream 9.1: ``src/gst-plugins/gst-nvinfer``, ``src/utils/nvdsinfer``). Those that
decide what is written here:

- nvinfer converts pixels to float32 whatever the engine takes (InferPreprocessor::transform).
- It builds engines of weakly typed networks, and in INT8 with a calibration file alone; where an engine does not load, it builds another one of
  the ``onnx-file`` (NvDsInferContextImpl::generateBackendContext). So the engine is built by ``trtexec --stronglyTyped``, and the configuration
  names no ``onnx-file``. From 9.0 on nvinfer has the property ``strongly-typed``.
- The scaled picture is at the top left, and the rest is black (get_converted_buffer).
- Objects that reach beyond the frame are dropped unless they are cropped (attach_metadata_detector).
"""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from edge_effdet.artifacts import (
    EngineRecord,
    Graph,
    atomic_folder,
    json_text,
    refuse_overwrite,
    require_writable,
    write_text,
)
from edge_effdet.artifacts.reading import to_json
from edge_effdet.device.manifest import require_name
from edge_effdet.errors import UsageError
from edge_effdet.options import option

if TYPE_CHECKING:
    import onnx

_FILES = Path(__file__).parent / "files" / "deepstream"

_MOST_STREAMS = 1024
"""nvinfer's largest batch, NVDSINFER_MAX_BATCH_SIZE in its nvdsinfer_context.h."""


@dataclass(frozen=True, kw_only=True)
class DeepStreamOptions:
    """What the pipeline is like in which the detector will run.

    Raises:
        UsageError: a number is out of range.
    """

    frame_width: int = option(1920, help="width of the frames that nvstreammux gives, 0 where they differ")
    frame_height: int = option(1080, help="height of the frames that nvstreammux gives, 0 where they differ")
    streams: int = option(1, help="how many streams nvstreammux puts into a batch; more than 1 needs --batch-size 0")
    score_threshold: float = option(0.3, help="lower scores are dropped")

    def __post_init__(self) -> None:
        if min(self.frame_width, self.frame_height) < 0 or (self.frame_width == 0) != (self.frame_height == 0):
            raise UsageError(
                f"Frames of {self.frame_width} x {self.frame_height} cannot be; give `frame_width` and `frame_height` in pixels, or 0 for both."
            )
        if not 1 <= self.streams <= _MOST_STREAMS:
            raise UsageError(f"`streams` {self.streams} is not between 1 and {_MOST_STREAMS}, nvinfer's limit.")
        if not 0 <= self.score_threshold <= 1:
            raise UsageError(f"`score_threshold` {self.score_threshold} is not between 0 and 1; 0.3 is usual.")


def write_deepstream(
    graph: Graph, record: EngineRecord, output: Path, options: DeepStreamOptions | None = None
) -> Path:
    """Write the folder for DeepStream.

    Args:
        graph: the graph to run, of any precision, with uint8 or float32 pixels.
        record: of an engine that was built of this graph.
        output: the folder to make; it may not be there yet.
        options: the pipeline; None for the defaults.

    Returns:
        ``output``.

    Raises:
        UsageError: the folder exists, its name or the batch does not fit, or the engine of the record suppresses boxes inside.
        GraphError: the graph ends at the head tensors, or does not begin with a cast of its pixels.
        InputError: the folder cannot be written.
    """
    from edge_effdet.graph.float_input import write_float_input
    from edge_effdet.graph.model import load_model, require_detections

    options, output = options or DeepStreamOptions(), Path(output)
    if record.nms != "host":
        raise UsageError(
            f"{record.engine} suppresses boxes inside, and here the parser does; build it with `nms` host."
        )
    require_detections(graph)
    shapes = _profile(load_model(graph.path), options.streams)
    refuse_overwrite([output], [graph.path])
    if output.exists():
        raise UsageError(
            f"{output} is there already, and nothing is written over it; give another `output`, or remove it."
        )
    require_writable(output.parent)
    name = f"{require_name(record.engine.split('.')[0])}.{graph.precision}"
    values = {**_values(graph, options), "NAME": name, "SHAPES": "".join(f" --{each}" for each in shapes)}
    with atomic_folder(output) as folder:
        write_float_input(graph, folder / f"{name}.onnx")
        for file in ("Makefile", "README.txt", "config_infer_primary.txt"):
            text = (_FILES / file).read_text(encoding="ascii")
            write_text(folder / file, re.sub(r"@([A-Z_]+)@", lambda found: values[found[1]], text))
        shutil.copyfile(_FILES / "effdet_parser.cpp", folder / "effdet_parser.cpp")
        write_text(folder / "labels.txt", "".join(f"{label}\n" for label in labels_for_nvinfer(graph.spec.class_names)))
        write_text(folder / "record.json", json_text(to_json(record), indent=2) + "\n")
        folder.chmod(0o755)
    return output


def _values(graph: Graph, options: DeepStreamOptions) -> dict[str, str]:
    """What stands in the files for the names between @."""
    spec, width, height = graph.spec, options.frame_width, options.frame_height
    built = f"The parser is built for frames of {width} x {height} from nvstreammux; for others build it again:"
    if not width:
        built = "The parser is built for frames of any size; where nvstreammux gives one size, build it for that:"
    return {
        "TITLE": f"{spec.name} with {spec.num_classes} class{'es' if spec.num_classes > 1 else ''}",
        "VERSION": metadata.version("edge-effdet"),
        "PRECISION": graph.precision.upper(),
        "HEIGHT": str(spec.image_size[0]),
        "WIDTH": str(spec.image_size[1]),
        "CLASSES": str(spec.num_classes),
        "BATCH": str(options.streams),
        "THRESHOLD": f"{options.score_threshold:g}",
        "FRAME_WIDTH": str(width),
        "FRAME_HEIGHT": str(height),
        "FRAMES": built,
        "MUX_WIDTH": str(width or 1920),
        "MUX_HEIGHT": str(height or 1080),
    }


def labels_for_nvinfer(names: tuple[str, ...]) -> list[str]:
    """The names of classes as lines of nvinfer's file of labels.

    It takes a semicolon for the end of a label and leaves empty lines out, after which all classes would have the name of another one
    (InferPostprocessor::parseLabelsFile).
    """
    lines = [" ".join(name.replace(";", ",").split()) for name in names]
    return [line or f"class {number}" for number, line in enumerate(lines)]


def _profile(model: onnx.ModelProto, streams: int) -> list[str]:
    """The flags of trtexec for a dynamic batch; none for a fixed one, which ``streams`` has to be."""
    pixels = model.graph.input[0]
    batch, *image = (axis.dim_value for axis in pixels.type.tensor_type.shape.dim)
    if batch:
        if batch != streams:
            raise UsageError(
                f"The graph takes batches of {batch} and `streams` is {streams}; make the graph with `batch_size` 0, which leaves the batch dynamic, "
                f"or give {batch}."
            )
        return []
    shape = "x".join(map(str, image))
    sizes = {"minShapes": 1, "optShapes": streams, "maxShapes": streams}
    return [f"{flag}={pixels.name}:{size}x{shape}" for flag, size in sizes.items()]
