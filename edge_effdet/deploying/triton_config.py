"""What Triton Inference Server is told of a model: the options of ``deploy --format triton``, and the text of a ``config.pbtxt``.

The text is protobuf's text format of the message ModelConfig (model_config.proto of Triton's repository "common").
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

from edge_effdet.artifacts import ModelSpec, printable
from edge_effdet.errors import UsageError
from edge_effdet.options import option
from edge_effdet.runtime.detector import DetectOptions

Tensors = Mapping[str, tuple[str, tuple[int, ...]]]
"""By name, Triton's name of the type, and the shape without the axis of the batch; -1 for a dynamic axis."""

OUTPUTS: Tensors = {
    "BOXES": ("TYPE_FP32", (-1, 4)),
    "SCORES": ("TYPE_FP32", (-1,)),
    "CLASS_IDS": ("TYPE_INT32", (-1,)),
    "COUNTS": ("TYPE_INT32", (1,)),
}
"""What a client gets."""

IMAGE: Tensors = {"IMAGE": ("TYPE_STRING", (1,))}
"""What a client sends: the content of one picture file for each place of the batch."""

MAX_BATCH_SIZE = 8
"""Of a model of Python, where nothing else is said."""


@dataclass(frozen=True, kw_only=True)
class TritonOptions(DetectOptions):
    """How Triton runs an engine. The fields that ``DetectOptions`` has are what holds for a request that says nothing else.

    Raises:
        UsageError: a number makes no sense.
    """

    model_version: int | None = option(
        None,
        help="the number of the version's folder (default: 1, or one more than the newest that is there; the newest itself where nothing would change)",
    )
    max_batch_size: int | None = option(
        None, help=f"pictures in a batch of Triton's at most (default: {MAX_BATCH_SIZE}, or what a TensorRT plan takes)"
    )
    preferred_batch_sizes: str = option(
        "", help="batch sizes at which Triton waits for no further requests, as in 4,8; the largest where empty"
    )
    queue_delay_ms: float = option(1.0, help="how long Triton lets a request wait for others of its batch")
    instances: int = option(1, help="processes that run the engine, each with a copy of it in memory")
    threads: int = option(0, help="threads of one run on a CPU; 0 for what suits the server's cores")
    run_batch: int = option(
        0, help="pictures in one run, for an engine with a dynamic batch; 0 for one, which suits a CPU"
    )
    plan_batch_sizes: str = option(
        "1,8", help="for a TensorRT plan with a dynamic batch: the batch_sizes that it was built with"
    )
    environment: str | None = option(
        None,
        help="what the server's Python is to be: a folder or an archive of conda-pack, by its path on the server; "
        "$$TRITON_MODEL_DIRECTORY in it stands for the model's folder (default: the server's own)",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, least in (
            ("model_version", 1),
            ("max_batch_size", 1),
            ("instances", 1),
            ("threads", 0),
            ("run_batch", 0),
        ):
            value = getattr(self, name)
            if value is not None and value < least:
                raise UsageError(f"`{name}` {value} makes no sense; give at least {least}.")
        if not 0 <= self.queue_delay_ms <= 10_000:
            raise UsageError(f"`queue_delay_ms` {self.queue_delay_ms} makes no sense; give 0 to 10000.")
        if self.environment is not None and not self.environment.strip():
            raise UsageError("`environment` is empty; leave it out, or give a path on the server.")
        parse_batch_sizes(self.preferred_batch_sizes, "preferred_batch_sizes")
        if not parse_batch_sizes(self.plan_batch_sizes, "plan_batch_sizes"):
            raise UsageError("`plan_batch_sizes` is empty; write 1,8, for example.")


def thresholds(options: TritonOptions) -> dict[str, str]:
    """The parameters by which a model of Python knows its ``DetectOptions``."""
    return {item.name: str(getattr(options, item.name)) for item in fields(DetectOptions)}


def python_config(
    name: str,
    inputs: Tensors,
    outputs: Tensors,
    batch: int,
    options: TritonOptions,
    parameters: Mapping[str, str],
    spec: ModelSpec | None = None,
) -> bytes:
    """The config of a model of Python.

    Args:
        name: of the model.
        inputs, outputs: its tensors.
        batch: pictures in a batch at most.
        options: how it is batched, in how many processes, with which Python.
        parameters: what the model is told.
        spec: whose classes clients are to learn; None for a model that no client asks.

    Raises:
        UsageError: a preferred batch size is larger than ``batch``.
    """
    parameters = dict(parameters) | ({} if spec is None else _classes(spec))
    if options.environment is not None:
        parameters["EXECUTION_ENV_PATH"] = options.environment
    lines = [
        f'name: "{name}"',
        'backend: "python"',
        *_tensors("input", inputs),
        *_tensors("output", outputs),
        *_batching(batch, options),
        # A backend that computes on a GPU chooses it itself.
        f"instance_group [ {{ kind: KIND_CPU count: {options.instances} }} ]",
        *_parameters(parameters),
    ]
    return _text(lines)


def plan_config(name: str, inputs: Tensors, outputs: Tensors, batch: int, options: TritonOptions) -> bytes:
    """The config of a plan that Triton's TensorRT backend runs; the arguments are those of ``python_config``. Raises UsageError as that does."""
    profiles = len(parse_batch_sizes(options.plan_batch_sizes, "plan_batch_sizes")) if batch > 1 else 1
    # Each batch size that the plan was built for has an optimization profile, of which Triton uses those that are named.
    named = ", ".join(f'"{number}"' for number in range(profiles))
    lines = [
        f'name: "{name}"',
        'platform: "tensorrt_plan"',
        'default_model_filename: "model.plan"',
        *_tensors("input", inputs),
        *_tensors("output", outputs),
        *_batching(batch, options),
        f"instance_group [ {{ kind: KIND_GPU count: {options.instances} profile: [ {named} ] }} ]",
    ]
    return _text(lines)


def ensemble_config(name: str, images: Tensors, sizes: Tensors, outputs: Tensors, batch: int, spec: ModelSpec) -> bytes:
    """The config of the ensemble around a plan.

    Args:
        name: of the ensemble; its models are called by it and their part.
        images: the plan's input.
        sizes: what goes past the plan, from decoding to suppression.
        outputs: the plan's outputs that suppression takes.
        batch: pictures in a request at most.
        spec: whose classes clients are to learn.
    """
    lines = [
        f'name: "{name}"',
        'platform: "ensemble"',
        f"max_batch_size: {batch}",
        *_tensors("input", IMAGE),
        *_tensors("output", OUTPUTS),
        "ensemble_scheduling {",
        *_step(f"{name}_decode", IMAGE, {**images, **sizes}),
        *_step(f"{name}_engine", images, outputs),
        *_step(f"{name}_boxes", {**outputs, **sizes}, OUTPUTS),
        "}",
        *_parameters(_classes(spec)),
    ]
    return _text(lines)


def _step(model: str, inputs: Tensors, outputs: Tensors) -> list[str]:
    return [
        "  step {",
        f'    model_name: "{model}" model_version: -1',
        *(f'    input_map {{ key: "{each}" value: "{each}" }}' for each in inputs),
        *(f'    output_map {{ key: "{each}" value: "{each}" }}' for each in outputs),
        "  }",
    ]


def _tensors(kind: str, tensors: Tensors) -> list[str]:
    rows = [
        f'  {{ name: "{name}" data_type: {data_type} dims: [ {", ".join(map(str, dims))} ] }}'
        for name, (data_type, dims) in tensors.items()
    ]
    return [f"{kind} [", *(f"{row}," for row in rows[:-1]), rows[-1], "]"]


def _batching(batch: int, options: TritonOptions) -> list[str]:
    preferred = parse_batch_sizes(options.preferred_batch_sizes, "preferred_batch_sizes")
    if preferred and preferred[-1] > batch:
        raise UsageError(
            f"`preferred_batch_sizes` has {preferred[-1]} and a batch has {batch} pictures at most; give smaller ones, or a larger `max_batch_size`."
        )
    sizes = f"preferred_batch_size: [ {', '.join(map(str, preferred))} ] " if preferred else ""
    delay = round(1000 * options.queue_delay_ms)
    return [f"max_batch_size: {batch}", f"dynamic_batching {{ {sizes}max_queue_delay_microseconds: {delay} }}"]


def _classes(spec: ModelSpec) -> dict[str, str]:
    """For clients, which can ask the server for the config and not for files."""
    return {"class_names": json.dumps(spec.class_names), "category_ids": json.dumps(spec.category_ids)}


def _parameters(parameters: Mapping[str, str]) -> list[str]:
    return [
        f'parameters {{ key: "{key}" value: {{ string_value: "{_quoted(value)}" }} }}'
        for key, value in parameters.items()
    ]


def _quoted(text: str) -> str:
    """A text between the quotes of protobuf's text format, ASCII alone."""
    plain = {*range(0x20, 0x7F)} - {*b'"\\'}
    return "".join(chr(byte) if byte in plain else f"\\{byte:03o}" for byte in printable(text).encode())


def _text(lines: Sequence[str]) -> bytes:
    return "".join(f"{line}\n" for line in lines).encode("ascii")


def parse_batch_sizes(text: str, field: str) -> tuple[int, ...]:
    """``4,8`` to (4, 8). Raises UsageError where they do not ascend from 1 or more."""
    parts = [each.strip() for each in text.split(",")] if text.strip() else []
    sizes = tuple(int(each) for each in parts if each.isdecimal())
    if len(sizes) < len(parts) or [0, *sizes] != sorted({0, *sizes}):
        raise UsageError(f"`{field}` {text} are no numbers that ascend from 1 or more; write 1,8, for example.")
    return sizes
