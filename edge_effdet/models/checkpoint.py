"""Checkpoints: safetensors files whose metadata hold the ModelSpec, how the model was trained, and a hash of the weights.

``python -m edge_effdet.models.checkpoint IN.safetensors OUT.safetensors`` stores a checkpoint in FP16, at half the size.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_effdet.artifacts import (
    FUSIONS,
    Checkpoint,
    ModelSpec,
    Size,
    atomic_output,
    file_sha256,
    refuse_overwrite,
    require_writable_file,
)
from edge_effdet.cli import Result, add_options, make_parser, options_from, run_verb
from edge_effdet.errors import CheckpointError, InputError, UsageError
from edge_effdet.models.foreign import COUNTER, file_format, read_foreign_weights
from edge_effdet.models.zoo import create_network, model_spec
from edge_effdet.options import option

if TYPE_CHECKING:
    import torch

logger = logging.getLogger("edge_effdet.models.checkpoint")

_METADATA_KEY = "edge_effdet"
_PREDICT_WEIGHT = "class_net.predict.conv_pw.weight"


def save_checkpoint(
    path: Path,
    weights: Mapping[str, torch.Tensor],
    spec: ModelSpec,
    provenance: Mapping[str, Any],
    half: bool = False,
) -> Checkpoint:
    """Write a checkpoint atomically.

    Args:
        path: the file, by convention ``.safetensors``.
        weights: the state of the network that ``create_network(spec)`` builds.
        spec: the model's description, stored in the metadata.
        provenance: how the weights were made (command, data, metrics), stored in the metadata as JSON.
        half: store floating-point tensors as FP16.

    Raises:
        CheckpointError: a weight is not finite.
    """
    import torch
    from safetensors.torch import save

    tensors = {
        name: (tensor.half() if half and tensor.is_floating_point() else tensor).detach().cpu().contiguous()
        for name, tensor in weights.items()
        if not name.endswith(COUNTER)
    }
    if not all(torch.isfinite(tensor).all() for tensor in tensors.values()):
        raise CheckpointError(
            f"The weights for {path.name} hold values that are not finite, so nothing was written; lower the learning rate."
        )
    content = {"spec": spec.to_dict(), "provenance": dict(provenance), "tensors_sha256": tensors_sha256(tensors)}
    metadata = {_METADATA_KEY: json.dumps(content, sort_keys=True)}
    with atomic_output(path) as temporary:
        # safetensors' save_file would hide a full disk behind an exception of its own.
        temporary.write_bytes(save(tensors, metadata=metadata))
    return Checkpoint(path, spec, dict(provenance), file_sha256(path))


def tensors_sha256(tensors: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 over names, types, shapes and values, in the order of the names, as a hexadecimal string.

    The hash does not depend on the order, device or memory layout of the tensors.
    """
    import torch

    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        # As bytes, because NumPy has no bfloat16; flat, because a scalar cannot be viewed as another type.
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


@dataclass(frozen=True, kw_only=True)
class SourceOptions:
    """Which model a checkpoint of another program holds, which does not say so itself."""

    model: str | None = option(None, help="the architecture of a checkpoint that does not say it, as effdet's .pth")
    classes: str | None = option(
        None, help="the class names of such a checkpoint, separated by commas (default: COCO's)"
    )
    image_size: Size | None = option(None, help="with --model: N or HxW, multiples of 32")
    fusion: str | None = option(
        None, help="with --model: the BiFPN's fusion (default: the model's own)", choices=FUSIONS
    )

    @property
    def class_names(self) -> tuple[str, ...] | None:
        return tuple(name.strip() for name in self.classes.split(",")) if self.classes else None

    def spec(self) -> ModelSpec:
        """The spec of ``model``, which must be there. Raises UsageError as ``zoo.model_spec``."""
        assert self.model is not None
        return model_spec(self.model, self.class_names, image_size=self.image_size, fusion=self.fusion)


def open_checkpoint(path: Path, told: SourceOptions | None = None) -> Checkpoint:
    """Read a checkpoint's description; its weights are not checked.

    Args:
        path: a file of ``save_checkpoint``, or one of another program, which is recognised by its content (``foreign``).
        told: what a file of another program does not say. What a file of ``save_checkpoint`` says must not contradict it.

    Raises:
        CheckpointError: the file is missing, damaged or no checkpoint.
        UsageError: ``told`` contradicts the file, or it is of another program and ``told`` names no model.
    """
    path, told = Path(path), told or SourceOptions()
    content = _read_description(path)
    if content is None:
        if told.model is None:
            raise UsageError(
                f"{path} does not say which model it is, as only the files of python -m edge_effdet.train do; give `model` NAME "
                "too, and its class names where they are not COCO's."
            )
        return Checkpoint(path, told.spec(), {}, file_sha256(path))
    try:
        if not isinstance(content, dict):
            raise ValueError("it is no object")
        spec = ModelSpec.from_dict(content["spec"])
    except (ValueError, KeyError, TypeError, InputError) as error:
        raise CheckpointError(f"{path} has a damaged model description ({error}); train it again.") from error
    _refuse_contradiction(path, spec, told)
    return Checkpoint(path, spec, content.get("provenance", {}), file_sha256(path))


def describes_itself(path: Path) -> bool:
    """Whether ``save_checkpoint`` wrote a file, which then says what model it holds. Raises CheckpointError for what is no checkpoint."""
    return _read_description(path) is not None


def is_checkpoint(path: Path) -> bool:
    """Whether a file is a checkpoint of any program, by its content, or has the suffix of those of ``save_checkpoint``."""
    try:
        return path.suffix == ".safetensors" or bool(file_format(path))
    except CheckpointError:
        return False


def _read_description(path: Path) -> Any | None:
    """The JSON that ``save_checkpoint`` put into the metadata, not yet checked; None for a file of another program.

    Raises:
        CheckpointError: the file is missing, damaged or no checkpoint.
    """
    if file_format(path) != "safetensors":
        return None
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="np") as file:
            metadata = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path} is not a whole safetensors file ({error}); copy it again, or train it again."
        ) from error
    if f"{_METADATA_KEY}_resume" in metadata:
        raise CheckpointError(
            f"{path} is the state of a run that `resume` goes on with; give best.safetensors beside it."
        )
    if _METADATA_KEY not in metadata:
        return None
    try:
        return json.loads(metadata[_METADATA_KEY])
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} has a damaged model description ({error}); train it again.") from error


def _refuse_contradiction(path: Path, spec: ModelSpec, told: SourceOptions) -> None:
    """Raise UsageError if something was told that the file says otherwise."""
    if told.model not in (None, spec.name):
        raise UsageError(f"{path} is a {spec.name}, not a {told.model}; leave `model` out.")
    if told.class_names not in (None, spec.class_names):
        raise UsageError(
            f"{path} has {spec.num_classes} classes ({', '.join(spec.class_names[:5])}…) and `classes` names "
            f"{len(told.class_names or ())}; leave `classes` out."
        )
    if told.image_size not in (None, spec.image_size):
        raise UsageError(f"{path} was trained at {'x'.join(map(str, spec.image_size))}; leave `image_size` out.")
    if told.fusion not in (None, spec.fusion):
        raise UsageError(f"{path} sums its BiFPN's inputs by {spec.fusion}; leave `fusion` out.")


def load_network(checkpoint: Checkpoint) -> torch.nn.Module:
    """The checkpoint's network in evaluation mode, FP32, on the CPU. The file may be of another program than ``save_checkpoint``.

    Raises:
        CheckpointError: the weights do not match the hash in the metadata, which the files of the first versions lack, or do not fit the
            checkpoint's spec, or are not finite; or the file is damaged or contains code.
    """
    content = _read_description(checkpoint.path)
    if content is None:
        return load_foreign(checkpoint.path, checkpoint.spec)
    from safetensors.torch import load_file

    weights, expected = load_file(str(checkpoint.path)), content.get("tensors_sha256")
    if expected is None:
        logger.warning(
            "%s has no hash of its weights, as files of the first versions, so nobody would notice that it is damaged",
            checkpoint.path,
        )
    elif tensors_sha256(weights) != expected:
        raise CheckpointError(
            f"{checkpoint.path} is damaged: its weights do not match the hash written with them; copy it again."
        )
    return load_weights(checkpoint.spec, weights, checkpoint.path)


def load_foreign(path: Path, spec: ModelSpec) -> torch.nn.Module:
    """Load the weights that another program wrote into the network that ``spec`` describes, as ``load_network`` does.

    Raises:
        CheckpointError: the file is missing or damaged, contains code, or belongs to another architecture or number of classes.
    """
    network = create_network(spec)
    return _fill(network, spec, read_foreign_weights(path, _names(network)), path)


def load_weights(spec: ModelSpec, weights: Mapping[str, torch.Tensor], source: Path | str) -> torch.nn.Module:
    """Build the network that ``spec`` describes and load the weights into it; every tensor must be there and fit.

    Fusion weights have the same names and shapes in ``fast``, ``softmax`` and ``unbounded``: weights that were trained with
    another of these kinds than the spec's are not noticed.

    Returns:
        The network in evaluation mode, FP32, on the CPU.

    Raises:
        CheckpointError: a tensor is missing, unknown or of another shape. A wrong number of classes or kind of fusion is named
            as such.
    """
    return _fill(create_network(spec), spec, weights, source)


def _fill(
    network: torch.nn.Module, spec: ModelSpec, weights: Mapping[str, torch.Tensor], source: Path | str
) -> torch.nn.Module:
    import torch

    from edge_effdet.models.bifpn import is_edge_weight

    state = network.state_dict()
    expected = {name: state[name] for name in _names(network)}
    given = {name: tensor.float() for name, tensor in weights.items() if not name.endswith(COUNTER)}
    if (
        _PREDICT_WEIGHT in given
        and given[_PREDICT_WEIGHT].shape[1:] == expected[_PREDICT_WEIGHT].shape[1:]
        and len(given[_PREDICT_WEIGHT]) != len(expected[_PREDICT_WEIGHT])
    ):
        anchors = spec.anchors.num_scales * len(spec.anchors.aspect_ratios)
        raise CheckpointError(
            f"{source} predicts {given[_PREDICT_WEIGHT].shape[0] / anchors:g} classes and {spec.num_classes} were expected; "
            "give the class list that it was trained with."
        )
    missing = expected.keys() - given.keys()
    surplus = given.keys() - expected.keys()
    misfit = sorted(name for name in expected.keys() & given.keys() if expected[name].shape != given[name].shape)
    if (missing or surplus) and not misfit and all(is_edge_weight(name) for name in missing | surplus):
        found = (
            "sum, which has no fusion weights" if missing else "fast, softmax or unbounded, which have fusion weights"
        )
        raise CheckpointError(
            f"{source} is a {spec.name} with BiFPN fusion {found}, and {spec.fusion} was expected; give the fusion that it "
            "was trained with."
        )
    if missing or surplus or misfit:
        examples = [f"{kind} {min(names)}" for kind, names in (("missing", missing), ("unknown", surplus)) if names]
        examples += [f"{name} is {list(given[name].shape)} and not {list(expected[name].shape)}" for name in misfit[:2]]
        raise CheckpointError(
            f"{source} is not a {spec.name}: of {len(expected)} tensors {len(missing)} are missing and {len(misfit)} have another "
            f"shape, and {len(surplus)} are unknown ({'; '.join(examples)}); give the `model` that it was trained as."
        )
    broken = sorted(name for name in expected if not bool(torch.isfinite(given[name]).all()))
    if broken:
        raise CheckpointError(
            f"{source} holds weights that are not finite ({broken[0]}{f' and {len(broken) - 1} more' if len(broken) > 1 else ''}), so it would "
            "find nothing; train it again with a lower learning rate."
        )
    network.load_state_dict(given, strict=False)
    return network.eval()


def _names(network: torch.nn.Module) -> list[str]:
    """The names of a network's tensors, without the counters of its batch norms."""
    return [name for name in network.state_dict() if not name.endswith(COUNTER)]


def halve_checkpoint(source: Checkpoint, output: Path) -> Checkpoint:
    """Write a copy of a checkpoint with its weights in FP16. The copy's metadata add the hash of the original.

    Raises:
        UsageError: the copy would overwrite the original.
        InputError: the folder of ``output`` cannot be written.
        CheckpointError: the original is damaged.
    """
    refuse_overwrite([output], [source.path])
    require_writable_file(output)
    provenance = {**source.provenance, "stored_as": "fp16", "parent_sha256": source.sha256}
    return save_checkpoint(output, load_network(source).state_dict(), source.spec, provenance, half=True)


def _run(arguments: argparse.Namespace) -> Result:
    written = halve_checkpoint(
        open_checkpoint(arguments.source, options_from(SourceOptions, arguments)), arguments.output
    )
    return Result(
        f"{written.path}: {written.spec.name}, FP16, {written.path.stat().st_size / 1e6:.1f} MB",
        {"checkpoint": str(written.path), "sha256": written.sha256},
    )


def main(argv: Sequence[str] | None = None) -> int:
    parser = make_parser(
        "models.checkpoint",
        "Store a checkpoint in FP16, half the size. The copy of another program's file says which model it holds.",
        "python -m edge_effdet.models.checkpoint runs/bccd/best.safetensors bccd.safetensors",
    )
    parser.add_argument("source", type=Path, help="a checkpoint of train, or with --model of another program")
    parser.add_argument("output", type=Path, help="the file to write")
    add_options(parser, SourceOptions)
    return run_verb(parser, _run, argv)


if __name__ == "__main__":
    sys.exit(main())
