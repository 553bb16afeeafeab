"""The file that ``resume`` goes on from. It holds the whole state of a run at one moment, and is written whole or not at all.

It is a safetensors file with numbers as JSON in its metadata and a hash over the tensors, so that a damaged one is refused.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_effdet.artifacts import atomic_output
from edge_effdet.errors import CheckpointError, first_line
from edge_effdet.models.checkpoint import tensors_sha256

if TYPE_CHECKING:
    import torch

FILE_NAME = "resume.safetensors"
_METADATA_KEY = "edge_effdet_resume"


@dataclass(frozen=True, slots=True)
class RunProgress:
    """Where a run stands.

    Attributes:
        epoch, step: position of the next batch, both from 0.
        sums: the losses of this epoch's batches so far, summed up: total, class, box.
        rows: one entry an epoch, as in ``metrics.jsonl``.
        best_ap, best_loss: best values on the validation split so far; None before the first validation.
        stale: how many validations there were since ``best_ap``.
        seconds: duration of the training up to this moment, over all starts.
    """

    epoch: int = 0
    step: int = 0
    sums: tuple[float, ...] = (0.0, 0.0, 0.0)
    rows: tuple[Mapping[str, Any], ...] = field(default=())
    best_ap: float | None = None
    best_loss: float | None = None
    stale: int = 0
    seconds: float = 0.0


def save_progress(
    folder: Path,
    progress: RunProgress,
    identity: Mapping[str, Any],
    tensors: Mapping[str, torch.Tensor],
    numbers: Mapping[str, Any],
) -> None:
    """Write the file atomically.

    Args:
        folder: the run's.
        progress: where the run stands.
        identity: what must be the same when the run goes on: model, data, options.
        tensors, numbers: the state that ``Trainer.state`` returned.

    Raises:
        InputError: the file cannot be written; the earlier one stays.
        CheckpointError: a weight is not finite, so that no training could go on from it; the earlier file stays.
    """
    import torch
    from safetensors.torch import save

    # ``save_file`` would hide a full disk behind an exception of its own. Tied tensors are stored twice.
    stored = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()
    }
    if not all(torch.isfinite(tensor).all() for tensor in stored.values()):
        raise CheckpointError(
            f"The weights are not finite in epoch {progress.epoch + 1}, so training stopped and {FILE_NAME} stays as it was; "
            "start anew with a lower `learning_rate`."
        )
    content = {
        "progress": asdict(progress),
        "identity": dict(identity),
        "numbers": dict(numbers),
        "tensors_sha256": tensors_sha256(stored),
    }
    with atomic_output(folder / FILE_NAME) as temporary:
        temporary.write_bytes(save(stored, metadata={_METADATA_KEY: json.dumps(content)}))


def load_progress(folder: Path) -> tuple[RunProgress, dict[str, Any], dict[str, torch.Tensor], dict[str, Any]] | None:
    """Read the state that ``save_progress`` wrote: progress, identity, tensors, numbers; None where there is no file.

    Raises:
        CheckpointError: the file is damaged.
    """
    from safetensors import SafetensorError, safe_open

    path = folder / FILE_NAME
    if not path.is_file():
        return None
    try:
        with safe_open(str(path), framework="pt") as file:
            content = json.loads((file.metadata() or {})[_METADATA_KEY])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        raw = content["progress"]
        progress = RunProgress(**{**raw, "sums": tuple(raw["sums"]), "rows": tuple(raw["rows"])})
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(
            f"{path} is not a whole file to resume from ({first_line(error)}); start again without `resume`, from "
            "last.safetensors given as `checkpoint`."
        ) from error
    if tensors_sha256(tensors) != content["tensors_sha256"]:
        raise CheckpointError(
            f"{path} is damaged: its tensors do not match the hash written with them; start again without `resume`, from "
            "last.safetensors given as `checkpoint`."
        )
    return progress, content["identity"], tensors, content["numbers"]
