"""Checkpoints: safetensors files whose metadata hold the ModelSpec, how the model was trained, and a hash of the weights.

``python -m edge_effdet.models.checkpoint IN.safetensors OUT.safetensors`` stores a checkpoint in FP16, at half the size.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_effdet.artifacts import Checkpoint, ModelSpec, atomic_output, file_sha256
from edge_effdet.cli import Result, make_parser, run_verb
from edge_effdet.errors import CheckpointError, InputError, first_line
from edge_effdet.models.zoo import create_network

if TYPE_CHECKING:
    import torch

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
        if not name.endswith("num_batches_tracked")
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


def open_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint's description; its weights are not checked.

    Raises:
        CheckpointError: the file is missing or truncated, or ``save_checkpoint`` did not write it.
    """
    path = Path(path)
    content = _read_description(path)
    try:
        spec = ModelSpec.from_dict(content["spec"])
    except (ValueError, KeyError, TypeError, InputError) as error:
        raise CheckpointError(f"{path} has a damaged model description ({error}); train it again.") from error
    return Checkpoint(path, spec, content.get("provenance", {}), file_sha256(path))


def _read_description(path: Path) -> Any:
    """The JSON that ``save_checkpoint`` put into the metadata, not yet checked. Raises CheckpointError."""
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise CheckpointError(f"There is no checkpoint at {path}; train one with python -m edge_effdet.train.")
    try:
        with safe_open(str(path), framework="np") as file:
            metadata = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path} is not a whole safetensors file ({error}); copy it again, or train it again."
        ) from error
    if _METADATA_KEY not in metadata:
        raise CheckpointError(
            f"{path} is a safetensors file of another program: it carries no edge_effdet model description; "
            "give one that python -m edge_effdet.train wrote; export, build_engine and train also take effdet's .pth, with `model`."
        )
    try:
        return json.loads(metadata[_METADATA_KEY])
    except ValueError as error:
        raise CheckpointError(f"{path} has a damaged model description ({error}); train it again.") from error


def load_network(checkpoint: Checkpoint) -> torch.nn.Module:
    """The checkpoint's network in evaluation mode, FP32, on the CPU.

    Raises:
        CheckpointError: the weights do not match the hash in the metadata, which older files lack, or do not fit the
            checkpoint's spec.
    """
    from safetensors.torch import load_file

    expected = _read_description(checkpoint.path).get("tensors_sha256")
    weights = load_file(str(checkpoint.path))
    if expected is not None and tensors_sha256(weights) != expected:
        raise CheckpointError(
            f"{checkpoint.path} is damaged: its weights do not match the hash written with them; copy it again."
        )
    return load_weights(checkpoint.spec, weights, checkpoint.path)


def is_effdet_file(path: Path) -> bool:
    """Whether a file's suffix is that of effdet's own weights, which tell neither their model nor their classes."""
    return path.suffix in (".pth", ".pt")


def load_effdet_pth(path: Path, spec: ModelSpec) -> torch.nn.Module:
    """Load effdet's own ``.pth`` into the network that ``spec`` describes.

    The file is read with ``weights_only=True``: pickled code in it is refused and not run.

    Raises:
        CheckpointError: the file is missing or damaged, holds code, or belongs to another architecture or number of classes.
    """
    import pickle

    import torch

    if not path.is_file():
        raise CheckpointError(f"There is no checkpoint at {path}; correct `checkpoint`.")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} holds pickled Python objects or is not a PyTorch file, and is not opened for safety; "
            "save only model.state_dict() and give that file."
        ) from error
    except (RuntimeError, OSError, EOFError, ValueError) as error:
        raise CheckpointError(
            f"{path} is truncated or not a PyTorch file ({first_line(error)}); copy it again."
        ) from error
    for key in ("state_dict_ema", "state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
            break
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()) or not state:
        raise CheckpointError(f"{path} holds no dictionary of weights; save model.state_dict() and give that file.")
    weights = {key.removeprefix("module.").removeprefix("model."): value for key, value in state.items()}
    # effdet's DetBench modules store their anchors too, which follow from the spec.
    weights.pop("anchors.boxes", None)
    return load_weights(spec, weights, path)


def load_weights(spec: ModelSpec, weights: Mapping[str, torch.Tensor], source: Path | str) -> torch.nn.Module:
    """Build the network that ``spec`` describes and load the weights into it; every tensor must be there and fit.

    Fusion weights have the same names and shapes in ``fast``, ``softmax`` and ``unbounded``: weights that were trained with
    another of these kinds than the spec's are not noticed.

    Raises:
        CheckpointError: a tensor is missing, unknown or of another shape. A wrong number of classes or kind of fusion is named
            as such.
    """
    from edge_effdet.models.bifpn import is_edge_weight

    network = create_network(spec)
    expected = {
        name: tensor for name, tensor in network.state_dict().items() if not name.endswith("num_batches_tracked")
    }
    given = {name: tensor.float() for name, tensor in weights.items() if not name.endswith("num_batches_tracked")}
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
    misfit = [name for name in expected.keys() & given.keys() if expected[name].shape != given[name].shape]
    if (missing or surplus) and not misfit and all(is_edge_weight(name) for name in missing | surplus):
        found = (
            "sum, which has no fusion weights" if missing else "fast, softmax or unbounded, which have fusion weights"
        )
        raise CheckpointError(
            f"{source} is a {spec.name} with BiFPN fusion {found}, and {spec.fusion} was expected; give the fusion that it "
            "was trained with."
        )
    if missing or surplus or misfit:
        example = min(missing or surplus or misfit)
        raise CheckpointError(
            f"{source} is not a {spec.name}: {len(missing)} tensors are missing, {len(surplus)} are unknown and "
            f"{len(misfit)} have another shape (first: {example}); give the `model` that it was trained as."
        )
    network.load_state_dict(given, strict=False)
    return network.eval()


def halve_checkpoint(source: Checkpoint, output: Path) -> Checkpoint:
    """Write a copy of a checkpoint with its weights in FP16. The copy's metadata add the hash of the original."""
    provenance = {**source.provenance, "stored_as": "fp16", "parent_sha256": source.sha256}
    return save_checkpoint(output, load_network(source).state_dict(), source.spec, provenance, half=True)


def _run(arguments: argparse.Namespace) -> Result:
    written = halve_checkpoint(open_checkpoint(arguments.source), arguments.output)
    return Result(
        f"{written.path}: {written.spec.name}, FP16, {written.path.stat().st_size / 1e6:.1f} MB",
        {"checkpoint": str(written.path), "sha256": written.sha256},
    )


def main(argv: Sequence[str] | None = None) -> int:
    parser = make_parser(
        "models.checkpoint",
        "Store a checkpoint in FP16, half the size.",
        "python -m edge_effdet.models.checkpoint runs/bccd/best.safetensors bccd.safetensors",
    )
    parser.add_argument("source", type=Path, help="a checkpoint that train wrote")
    parser.add_argument("output", type=Path, help="the file to write")
    return run_verb(parser, _run, argv)


if __name__ == "__main__":
    sys.exit(main())
