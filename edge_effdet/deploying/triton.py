"""An engine as a model repository of NVIDIA's Triton Inference Server: what ``deploy --format triton`` writes.

    DIR/NAME/config.pbtxt         the model that clients ask: IMAGE in, BOXES, SCORES, CLASS_IDS and COUNTS out
    DIR/NAME/1/                   a model of Python, with the engine and its JSON beside it
    DIR/NAME/labels.txt           the names of the classes, a line each
    DIR/NAME/README.txt           what the server needs, and how it gets that
    DIR/NAME/environment/         the wheel of edge_effdet for the server's Python
    DIR/NAME/edge-effdet.json     the hashes of what was written, by which a later call tells its own files from others

An engine of TensorRT is run by Triton itself. Then NAME is an ensemble of three models beside it: NAME_decode and NAME_boxes, which are models of
Python, with NAME_engine between them. Its clients see no difference.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Template

from edge_effdet.artifacts import (
    Engine,
    ModelSpec,
    atomic_folder,
    atomic_output,
    file_sha256,
    json_text,
    printable,
    refuse_overwrite,
    require_writable,
    temporary_folder,
    write_json,
)
from edge_effdet.backends.base import get_backend
from edge_effdet.building.verify import find_compiled_graph
from edge_effdet.deploying.requirements import EXTRAS
from edge_effdet.deploying.triton_config import (
    IMAGE,
    MAX_BATCH_SIZE,
    OUTPUTS,
    Tensors,
    TritonOptions,
    ensemble_config,
    parse_batch_sizes,
    plan_config,
    python_config,
    thresholds,
)
from edge_effdet.deploying.wheel import write_device_wheel
from edge_effdet.errors import InputError, MissingDependency, UsageError
from edge_effdet.runtime.contract import OUTPUTS as GRAPH_OUTPUTS

logger = logging.getLogger("edge_effdet.deploy")

MARKER = "edge-effdet.json"
MARKER_FORMAT = 1
CONFIG = "config.pbtxt"
ENVIRONMENT = "environment"

_FILES = Path(__file__).parent / "files" / "triton"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_TYPES = {"uint8": "TYPE_UINT8", "float16": "TYPE_FP16", "float32": "TYPE_FP32", "int32": "TYPE_INT32"}


@dataclass(frozen=True, slots=True)
class TritonModel:
    """A model of the repository.

    Attributes:
        name: of its folder, by which Triton knows it.
        version: the files of its version's folder, by name: content, or a file to copy.
        top: the other files, by their path in the model's folder.
    """

    name: str
    version: Mapping[str, bytes | Path]
    top: Mapping[str, bytes | Path]


def write_triton_repository(
    engine: Engine, output: Path, options: TritonOptions | None = None, name: str | None = None
) -> Path:
    """Write an engine into a model repository of Triton Inference Server.

    What is there already of the same name is kept where it was written by an earlier call and nobody has changed it since: a version that is the same
    stays, another one gets the next number, and the files beside the versions are replaced. Each version's folder and each file appears as a whole.
    Models of other names are not touched.

    Args:
        engine: of any backend. Triton itself runs an engine of TensorRT, and then the graph that it was compiled from has to be beside it.
        output: the repository; the folder is made where it is missing.
        options: the defaults where None.
        name: the model's name; that of the engine's file without its suffixes where None.

    Returns:
        The folder of the model that clients ask, ``output/<name>``.

    Raises:
        UsageError: options that contradict the engine, a name that cannot be one, or something else is where the model would be written.
        InputError: a file cannot be read or written, or the graph of a TensorRT engine is not beside it.
    """
    options, output = options or TritonOptions(), Path(output)
    name = _checked_name(engine.path.name.split(".")[0] if name is None else name)
    record = engine.require_record()
    if options.threads and not get_backend(engine.backend).TRAITS.on_cpu:
        raise UsageError(f"{engine.backend} does not compute on the CPU, so `threads` means nothing; leave it out.")
    if record.gate is not None and not record.gate.passed:
        logger.warning("%s did not pass the accuracy gate when it was built: %s", engine.path.name, record.gate.text)
    refuse_overwrite([output], [engine.path, engine.json_path])
    require_writable(output)
    with temporary_folder() as aside:
        models = _models(engine, name, options, write_device_wheel(aside))
        # Before the first byte, so that nothing is written where one of them is refused.
        known = [_known_files(output / model.name, model) for model in models]
        version = _choose_version(output, models, options.model_version)
        for model, hashes in zip(models, known, strict=True):
            _write_model(output / model.name, model, version, hashes)
    return output / name


def _models(engine: Engine, name: str, options: TritonOptions, wheel: Path) -> list[TritonModel]:
    """The models of the repository, the one that clients ask last."""
    json_file = {f"{engine.path.name}.json": engine.json_path}
    about = {"labels.txt": _labels(engine.spec), f"{ENVIRONMENT}/{wheel.name}": wheel}
    model_py = {"model.py": _FILES / "model.py"}
    if engine.backend != "tensorrt":
        batch = options.max_batch_size or MAX_BATCH_SIZE
        running = {"part": "detect", "threads": str(options.threads), "run_batch": str(options.run_batch)}
        config = python_config(name, IMAGE, OUTPUTS, batch, options, running | thresholds(options), engine.spec)
        top = about | {CONFIG: config, "README.txt": _readme(engine, name, options, wheel.name)}
        return [TritonModel(name, model_py | {engine.path.name: engine.path} | json_file, top)]
    images, given, batch = _plan_tensors(engine, options)
    outputs = {each: given[each] for each in GRAPH_OUTPUTS}
    spec = {"spec.json": (json_text(engine.spec.to_dict(), indent=2) + "\n").encode()}
    sizes: Tensors = {"SIZES": ("TYPE_INT32", (2,))}
    (image_type, _), *_ = images.values()
    dtype = next(dtype for dtype, each in _TYPES.items() if each == image_type)
    decoding = {"part": "decode", "reduced_decode": options.reduced_decode, "input_dtype": dtype}
    configs = {
        "decode": python_config(f"{name}_decode", IMAGE, {**images, **sizes}, batch, options, decoding),
        "engine": plan_config(f"{name}_engine", images, given, batch, options),
        "boxes": python_config(
            f"{name}_boxes", {**outputs, **sizes}, OUTPUTS, batch, options, {"part": "boxes"} | thresholds(options)
        ),
    }
    versions: Mapping[str, Mapping[str, bytes | Path]] = {
        "decode": model_py | spec,
        "engine": {"model.plan": engine.path, "model.plan.json": engine.json_path},
        "boxes": model_py | spec,
    }
    parts = [TritonModel(f"{name}_{part}", versions[part], {CONFIG: config}) for part, config in configs.items()]
    top = about | {
        CONFIG: ensemble_config(name, images, sizes, outputs, batch, engine.spec),
        "README.txt": _readme(engine, name, options, wheel.name),
    }
    # Triton wants the folder of a version, and some ways to copy a repository lose one that is empty.
    return [*parts, TritonModel(name, json_file, top)]


def _plan_tensors(engine: Engine, options: TritonOptions) -> tuple[Tensors, Tensors, int]:
    """Input and outputs of a TensorRT plan as a config names them, and the largest batch, by the graph that the plan was compiled from."""
    try:
        import onnx_ir as ir
    except ModuleNotFoundError as error:
        raise MissingDependency("onnx-ir", "export", "to read the graph of a TensorRT engine") from error
    if engine.require_record().nms != "host":
        raise UsageError(
            f"{engine.path} suppresses boxes inside, which the ensemble does not; build it with `nms` host."
        )
    graph = find_compiled_graph(engine)
    if graph is None:
        raise InputError(
            f"The graph that {engine.path} was compiled from is not beside it, and a plan does not tell its tensors without a GPU; copy the folder graphs "
            "of the build along."
        )
    model = ir.load(str(graph.path)).graph
    described: list[Tensors] = []
    for values in (model.inputs, model.outputs):
        tensors: dict[str, tuple[str, tuple[int, ...]]] = {}
        for value in values:
            assert value.name is not None and value.shape is not None and value.dtype is not None
            tensors[value.name] = (_TYPES[value.dtype.numpy().name], tuple(_length(axis) for axis in value.shape[1:]))
        described.append(tensors)
    shape = model.inputs[0].shape
    assert shape is not None
    largest = _length(shape[0])
    if largest > 1:
        raise UsageError(
            f"{engine.path} takes {largest} pictures a run, never fewer, which Triton's batches cannot promise; build it with `batch_size` 0 or 1."
        )
    if largest == 1:
        logger.info(
            "%s takes one picture a run, so Triton makes no batches; build it with `batch_size` 0 for those",
            engine.path.name,
        )
    largest = largest if largest > 0 else parse_batch_sizes(options.plan_batch_sizes, "plan_batch_sizes")[-1]
    if options.max_batch_size is not None and options.max_batch_size > largest:
        raise UsageError(
            f"`max_batch_size` {options.max_batch_size} is more than the {largest} pictures that {engine.path} takes at once; give {largest}, or build it "
            "for more."
        )
    return described[0], described[1], options.max_batch_size or largest


def _length(axis: object) -> int:
    """The length of an axis, -1 where it is dynamic."""
    return axis if isinstance(axis, int) else -1


def _labels(spec: ModelSpec) -> bytes:
    """A line for each class, in the order of CLASS_IDS."""
    return "".join(" ".join(printable(name).split()) + "\n" for name in spec.class_names).encode()


def _readme(engine: Engine, name: str, options: TritonOptions, wheel: str) -> bytes:
    record, extra = engine.require_record(), EXTRAS[engine.backend]
    is_plan = engine.backend == "tensorrt"
    # Beside a plan the server's Python runs no engine.
    wheel = f"{ENVIRONMENT}/{wheel}{'' if is_plan else f'[{extra}]'}"
    template = Template((_FILES / "README.txt").read_text(encoding="ascii"))
    plan = Template((_FILES / "README-plan.txt").read_text(encoding="ascii")) if is_plan else Template("")
    values = {
        "name": name,
        "engine": printable(engine.path.name),
        "precision": engine.precision.upper(),
        "backend": engine.backend,
        "version": record.backend_version,
        "target": printable(record.target),
        "sha256": engine.sha256,
        "wheel": wheel,
        "threshold": f"{options.score_threshold:g}",
        "limit": str(options.max_detections),
        "needs": "NumPy and Pillow" if is_plan else f"NumPy, Pillow and {engine.backend}",
    }
    text = template.substitute(values, plan=plan.substitute(values))
    return text.encode("ascii", "backslashreplace")


def _checked_name(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"{printable(name)!r} cannot be the name of a model, which is that of a folder; give another `name` of letters, digits, '.', '_' and '-', 64 at "
            "most, that begins with a letter or digit."
        )
    return name


def _known_files(folder: Path, model: TritonModel) -> Mapping[str, Sequence[str]]:
    """The hashes of the files that an earlier call wrote beside the versions, by name; empty where nothing is there.

    Raises:
        UsageError: something else is there, or a file was changed since.
    """
    if not folder.exists() and not folder.is_symlink():
        return {}
    try:
        raw = json.loads((folder / MARKER).read_text(encoding="utf-8"))
        if raw["format"] != MARKER_FORMAT:
            raise ValueError("it is of another format")
        known = {str(name): [str(each) for each in hashes] for name, hashes in raw["files"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(
            f"{folder} is there already and was not written by deploy ({MARKER} in it is missing or damaged), so it is left as it is; give another `name` "
            "or `output`."
        ) from error
    for name in {*known, *model.top}:
        if (folder / name).is_file() and file_sha256(folder / name) not in known.get(name, ()):
            raise UsageError(
                f"{folder / name} was changed since deploy wrote it, so it is left as it is; move it away, or give another `name` or `output`."
            )
    return known


def _choose_version(output: Path, models: Sequence[TritonModel], wanted: int | None) -> int:
    """The version that all models get. Raises UsageError where ``wanted`` is there and is another one."""
    there = {model.name: _versions(output / model.name) for model in models}
    newest = max((number for numbers in there.values() for number in numbers), default=0)
    version = wanted or newest or 1
    others = [
        output / model.name / str(version)
        for model in models
        if version in there[model.name] and not _is_same(output / model.name / str(version), model.version)
    ]
    if not others:
        return version
    if wanted is None:
        return newest + 1
    raise UsageError(
        f"{others[0]} is there already with another content, and a version never changes; give another `model_version`, or leave it out."
    )


def _versions(folder: Path) -> list[int]:
    """The numbers of a model's versions. Triton takes no folder for one whose name begins with 0."""
    if not folder.is_dir():
        return []
    return [int(path.name) for path in folder.iterdir() if re.fullmatch("[1-9][0-9]*", path.name)]


def _is_same(folder: Path, files: Mapping[str, bytes | Path]) -> bool:
    """Whether a version's folder has these files. A backend may have put one of its own beside them."""
    return all(
        (folder / name).is_file() and file_sha256(folder / name) == _sha256(each) for name, each in files.items()
    )


def _sha256(content: bytes | Path) -> str:
    return file_sha256(content) if isinstance(content, Path) else hashlib.sha256(content).hexdigest()


def _write_model(folder: Path, model: TritonModel, version: int, known: Mapping[str, Sequence[str]]) -> None:
    hashes = {name: [_sha256(content)] for name, content in model.top.items()}
    if not folder.exists():
        with atomic_folder(folder, _nursery(folder.parent)) as aside:
            _fill(aside / str(version), model.version)
            _fill(aside, model.top)
            write_json(aside / MARKER, {"format": MARKER_FORMAT, "files": hashes})
        return
    if not (folder / str(version)).exists():
        # Triton takes no folder for a version whose name is no number.
        with atomic_folder(folder / str(version)) as aside:
            _fill(aside, model.version)
    # Old and new hashes count while files are replaced, so that a call that is killed can be repeated.
    both = {name: [*known.get(name, ()), *hashes.get(name, ())] for name in {*known, *hashes}}
    write_json(folder / MARKER, {"format": MARKER_FORMAT, "files": both})
    for name, content in model.top.items():
        path = folder / name
        if not path.is_file() or file_sha256(path) not in hashes[name]:
            with atomic_output(path) as temporary:
                _copy(content, temporary)
    for name in known.keys() - hashes.keys():
        (folder / name).unlink(missing_ok=True)
    write_json(folder / MARKER, {"format": MARKER_FORMAT, "files": hashes})


def _nursery(repository: Path) -> Path:
    """Where a model is made: beside the repository, in which Triton takes any folder for a model; in it where a rename could not reach it."""
    parent = repository.resolve().parent
    same = parent.stat().st_dev == repository.stat().st_dev
    return parent if same and os.access(parent, os.W_OK) else repository


def _fill(folder: Path, files: Mapping[str, bytes | Path]) -> None:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        _copy(content, folder / name)


def _copy(content: bytes | Path, path: Path) -> None:
    if isinstance(content, Path):
        shutil.copyfile(content, path)
    else:
        path.write_bytes(content)
