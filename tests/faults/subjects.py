"""The table of the verbs: a command on small inputs for each, and what is to be true of its outputs at any moment.

A case is a folder with ``in`` (what ``inputs.py`` wrote), ``out``, ``home`` and ``tmp``, in which the command runs.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fnmatch import fnmatch

CACHES = ("home", "home/*", "tmp", "tmp/torchinductor_*")
"""What a command may keep for its next start, or leave out: the answers of golden checks, what a runtime compiled, a folder of torch's."""


@dataclass(frozen=True, slots=True)
class Stop:
    """How a command ends that would run for ever: by SIGTERM, after a text on stderr; where that is closed, after some seconds."""

    after: str
    seconds: float


@dataclass(frozen=True, slots=True)
class Subject:
    """A verb with a command.

    Attributes:
        name: of the command, unlike all others.
        verb: its column in the table.
        words: the command, without the program.
        again: whether a later run may write over the outputs of an earlier one; else it refuses to.
        optional: patterns of outputs that may be missing or end in the middle: logs and caches.
        together: groups of outputs that are worth something together alone; where one is there, all of its group are, and go together.
        replaced: outputs that a later run may remove before it has others.
        patience: seconds after which it counts as hung.
        stop: how it is ended.
        module: whose ``main`` takes the words.
        told_to_end: exit codes after Ctrl-C or SIGTERM, besides those of all commands.
    """

    name: str
    verb: str
    words: str
    again: bool = True
    optional: tuple[str, ...] = ()
    together: tuple[tuple[str, ...], ...] = ()
    replaced: tuple[str, ...] = ()
    patience: float = 60.0
    stop: Stop | None = None
    module: str = "edge_effdet.__main__"
    told_to_end: tuple[int, ...] = ()

    def is_optional(self, name: str) -> bool:
        """Whether a file of the case, by its path in it, may be missing or end in the middle."""
        return any(fnmatch(name, pattern) for pattern in (*self.optional, *CACHES))


def engine(stem: str, *more: str) -> tuple[str, ...]:
    """An engine and its record."""
    return (stem, f"{stem}.json", *more)


_MEASURED = ("out/*.runtime_cache",)

SUBJECTS = (
    Subject(
        "train",
        "train",
        "train --data in/data --output out --image-size 64 --epochs 1 --batch-size 4 --workers 1 --backbone random --device cpu",
        optional=("out/tensorboard", "out/tensorboard/*", "tmp/pymp-*"),
        replaced=("out/best_loss.safetensors",),
        patience=120,
    ),
    Subject("export", "export", "export --checkpoint in/m.safetensors --output out/m.onnx --explain", patience=120),
    Subject(
        "quantize",
        "quantize",
        "quantize --onnx in/built/graphs/m.fp32.onnx --int8 --calibration-data in/data --calibration-images 8 --method max --rounding nearest "
        "--calibration-table out/table.json --output out/m.int8.onnx",
        patience=120,
    ),
    Subject(
        "build_engine",
        "build_engine",
        "build_engine --onnx in/built/graphs/m.fp32.onnx --fp32 --backend onnxruntime --eval-data in/data --output out",
        together=(engine("out/m.fp32.onnx"),),
        optional=_MEASURED,
        patience=120,
    ),
    Subject(
        "build_engine, INT8 by OpenVINO",
        "build_engine",
        "build_engine --onnx in/built/graphs/m.fp32.onnx --int8 --calibration-data in/data --calibration-split train --calibration-images 8 --method max "
        "--rounding nearest --backend openvino --eval-data in/data --split test --max-ap-drop none --output out",
        together=(engine("out/m.int8.onnx"),),
        optional=_MEASURED,
        patience=120,
    ),
    Subject("detect", "detect", "detect --engine in/small.onnxruntime.onnx --source in/pictures --output out"),
    Subject(
        "detect, a video by OpenVINO",
        "detect",
        "detect --engine in/small.openvino.onnx --source in/clip.mp4 --output out",
        optional=("in/small.openvino.onnx.runtime_cache",),
    ),
    Subject("detect, lines", "detect", "detect --engine in/small.onnxruntime.onnx --source in/clip.mp4 --json"),
    Subject("predict", "predict", "predict --checkpoint in/m.safetensors --source in/pictures --output out"),
    Subject("evaluate", "evaluate", "evaluate --engine in/built/m.fp32.onnx --data in/data --output out"),
    Subject("evaluate, a checkpoint", "evaluate", "evaluate --checkpoint in/m.safetensors --data in/data --output out"),
    Subject("benchmark", "benchmark", "benchmark --engine in/small.onnxruntime.onnx --output out", patience=180),
    Subject(
        "deploy",
        "deploy",
        "deploy --engine in/built/m.fp32.onnx --target x86-cpu --name m --release 1.0 --output out",
        again=False,
        together=(
            ("out/m-1.0-x86-cpu/SHA256SUMS", "out/m-1.0-x86-cpu/bundle.json", "out/m-1.0-x86-cpu/graphs/m.fp32.onnx"),
        ),
    ),
    Subject("deploy, for Triton", "deploy", "deploy --format triton --engine in/small.onnxruntime.onnx --output out"),
    Subject("verify", "verify", "verify --engine in/built/m.fp32.onnx --layers --output out"),
    Subject(
        "serve",
        "serve",
        "serve --engine in/small.openvino.onnx --listen 127.0.0.1:0",
        optional=("in/small.openvino.onnx.runtime_cache",),
        stop=Stop("listens on", 6.0),
        # What was accepted is answered, and then it ends as it should.
        told_to_end=(0,),
    ),
    Subject("data check", "data", "data check in/data --decode"),
    Subject(
        "data convert",
        "data",
        "data convert in/data --to yolo --output out/data",
        again=False,
        together=(("out/data/data.yaml", "out/data/images/test/000010.jpg", "out/data/labels/test/000010.txt"),),
    ),
    Subject("data view", "data", "data view in/data --output out/sheet.jpg"),
)

NAMES = {subject.name: subject for subject in SUBJECTS}

_PASSING = re.compile(r"events\.out\.tfevents\..*")


def steady_name(name: str) -> str:
    """A path in the case, without what differs from run to run."""
    return _PASSING.sub("events.out.tfevents", name)
