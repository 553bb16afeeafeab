"""Weights that another program wrote: effdet's own training, PyTorch Lightning, timm, or somebody's script.

Such a file is recognised by its content, whatever suffix it has. It holds a network's tensors by name somewhere among other things,
and the wrappers that the network had while it was trained put their own parts in front of the names or between them.
"""

from __future__ import annotations

import argparse
import logging
import pathlib
import re
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_effdet.errors import CheckpointError, first_line

if TYPE_CHECKING:
    import torch

logger = logging.getLogger("edge_effdet.models.checkpoint")

_KEYS = ("state_dict", "model_state_dict", "model", "net", "weights")
"""The usual keys of a network's tensors, the likeliest first. Averaged ones (EMA) come before them all."""

_AVERAGED = re.compile(r"(^|[._])(ema|averaged|shadow|swa)([._]|$)", re.IGNORECASE)

_WRAPPERS = frozenset({"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "module"})
"""Parts that torch.compile, FSDP, activation checkpointing and data parallelism put into names, which effdet's have not."""

COUNTER = "num_batches_tracked"
"""How the names of batch norms' counters end, which no forward pass reads."""

_DEEPEST = 4
"""So many dictionaries inside one another are looked into."""


def file_format(path: Path) -> str:
    """``safetensors`` or ``torch``, by the content of a file.

    Raises:
        CheckpointError: there is no such file, or it is neither.
    """
    if not path.is_file():
        raise CheckpointError(
            f"There is no checkpoint at {path}; correct `checkpoint`, or train one with python -m edge_effdet.train."
        )
    with path.open("rb") as file:
        start = file.read(9)
    # A ZIP archive, or a pickle of protocol 2 or later, which torch.save wrote before version 1.6.
    pickled = start.startswith((b"PK\x03\x04", b"\x80"))
    # The length of the header, 8 bytes, and the header, which is JSON. One length in 32 begins with the first byte of a pickle, and what a
    # pickle begins with is no length.
    if start[8:] == b"{" and (not pickled or int.from_bytes(start[:8], "little") <= path.stat().st_size - 8):
        return "safetensors"
    if pickled:
        return "torch"
    raise CheckpointError(
        f"{path} is not a whole safetensors file, nor one that torch.save wrote; copy it again, or train it again."
    )


def read_foreign_weights(path: Path, expected: Collection[str]) -> dict[str, torch.Tensor]:
    """The tensors of a network in a file of another program, by the names that they have in effdet's network.

    Averaged weights (EMA) are preferred where the file has them too. What was stripped, chosen and left out is logged.

    Args:
        path: the file. Code that it contains is refused and not run.
        expected: the names of the network's tensors, without the counters of batch norms.

    Returns:
        The tensors that fit best; they may lack some of the expected ones and have others. Counters of batch norms are left out.

    Raises:
        CheckpointError: the file is damaged or contains code, holds no tensors, or holds several networks.
    """
    found = [
        candidate
        for where, tensors in _tensors_in(_read(path))
        for candidate in _candidates(where, tensors, list(expected))
    ]
    if not found:
        raise CheckpointError(f"{path} holds no dictionary of weights; save model.state_dict() and give that file.")
    chosen = min(found, key=_Candidate.order)
    rivals = [
        each for each in found if each.order() == chosen.order() and not _same_tensors(each.weights, chosen.weights)
    ]
    if rivals and chosen.fits:
        raise CheckpointError(
            f"{path} holds several networks, under {', '.join(each.place for each in (chosen, *rivals))}; save the state_dict() of "
            "one and give that file."
        )
    _say_choice(path, chosen, found)
    return dict(chosen.weights)


@dataclass(frozen=True, slots=True)
class _Candidate:
    """Tensors that may be a network's.

    Attributes:
        where: the keys that lead to them, joined by dots; "" for the whole file.
        prefix: what was stripped from their names.
        weights: the tensors by their stripped names.
        others: the names beside them.
        fits: how many of the expected names are there.
    """

    where: str
    prefix: str
    weights: Mapping[str, torch.Tensor]
    others: Collection[str]
    fits: int

    @property
    def averaged(self) -> bool:
        return bool(_AVERAGED.search(self.where) or _AVERAGED.search(self.prefix))

    @property
    def place(self) -> str:
        return f"{self.where}[{self.prefix}*]" if self.prefix or not self.where else self.where

    def order(self) -> tuple[int, bool, int]:
        """The candidate with the lowest order is the network."""
        key = self.where.rpartition(".")[2]
        return -self.fits, not self.averaged, _KEYS.index(key) if key in _KEYS else len(_KEYS)


def _tensors_in(content: Any, where: str = "", depth: int = 0) -> Iterator[tuple[str, dict[str, torch.Tensor]]]:
    """Each dictionary with tensors by name, and the keys that lead to it."""
    import torch

    if not isinstance(content, Mapping) or depth > _DEEPEST:
        return
    tensors = {key: value for key, value in content.items() if isinstance(key, str) and isinstance(value, torch.Tensor)}
    if tensors:
        yield where, tensors
    for key, value in content.items():
        yield from _tensors_in(value, f"{where}.{key}" if where else str(key), depth + 1)


def _candidates(where: str, tensors: Mapping[str, torch.Tensor], expected: Sequence[str]) -> Iterator[_Candidate]:
    """The tensors without what wrappers add to their names: once for each prefix that stands before a network's names."""
    given = {name: tensor for name, tensor in tensors.items() if not name.endswith(COUNTER)}
    named = {
        ".".join(part for part in name.split(".") if part not in _WRAPPERS): tensor for name, tensor in given.items()
    }
    if len(named) < len(given):
        # Two networks of which one is wrapped.
        named = given
    # The first and the last tensor of a network are enough to find what stands before its names.
    prefixes = dict.fromkeys(
        name.removesuffix(end)
        for end in (expected[0], expected[-1])
        for name in named
        if f".{name}".endswith(f".{end}")
    )
    parts = {name.partition(".")[0] for name in expected}
    for prefix in prefixes or ("",):
        own = {
            name.removeprefix(prefix): tensor
            for name, tensor in named.items()
            if name.startswith(prefix) and name.removeprefix(prefix).partition(".")[0] in parts
        }
        # effdet's DetBench modules store their anchors too, which follow from the spec.
        others = [
            name
            for name in named
            if not (name.startswith(prefix) and name.removeprefix(prefix) in own) and not name.endswith("anchors.boxes")
        ]
        yield _Candidate(where, prefix, own or named, others if own else (), len(own.keys() & set(expected)))


def _same_tensors(some: Mapping[str, torch.Tensor], others: Mapping[str, torch.Tensor]) -> bool:
    import torch

    return some.keys() == others.keys() and all(torch.equal(tensor, others[name]) for name, tensor in some.items())


def _say_choice(path: Path, chosen: _Candidate, found: Sequence[_Candidate]) -> None:
    plain = [each for each in found if not each.averaged and each.fits]
    if chosen.averaged and plain:
        logger.info("%s: the averaged weights (EMA) are taken, under %s", path, chosen.place)
    for each in found:
        if each.averaged and not chosen.averaged and each.fits:
            logger.warning(
                "%s: the averaged weights (EMA) under %s lack %d tensors, so those under %s are taken",
                path,
                each.place,
                chosen.fits - each.fits,
                chosen.place,
            )
    if chosen.prefix and chosen.fits == len(chosen.weights):
        logger.info("%s: all %d tensors fit but for the prefix %s", path, chosen.fits, chosen.prefix)
    if chosen.others:
        logger.info(
            "%s: left out %d tensors beside the network's (first: %s)",
            path,
            len(chosen.others),
            min(chosen.others),
        )


def _read(path: Path) -> Any:
    """What a file contains. Raises CheckpointError."""
    if file_format(path) == "safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(str(path))
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{path} is not a whole safetensors file ({error}); copy it again.") from error
    import pickle

    import torch

    try:
        # torch warns of archives that it then refuses.
        with torch.serialization.safe_globals(_harmless()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        code = re.search(r"GLOBAL (\w[\w.]*\w)", str(error))
        if code is None:
            reason = re.search(r"error: (.+)", str(error))
            raise CheckpointError(
                f"{path} is damaged, or contains pickled objects that are not opened ({reason[1] if reason else 'no reason is known'}); "
                "copy it again, or save only model.state_dict()."
            ) from error
        raise CheckpointError(
            f"{path} contains pickled code ({code[1]}), which may do anything and is not run; load it where it was made, and save "
            "only model.state_dict()."
        ) from error
    except (RuntimeError, OSError, EOFError, ValueError, IndexError, KeyError) as error:
        if "TorchScript" in str(error):
            raise CheckpointError(
                f"{path} is a TorchScript program, which is not run; save model.state_dict() and give that file."
            ) from error
        raise CheckpointError(
            f"{path} is truncated or torch.save did not write it ({first_line(error)}); copy it again."
        ) from error


def _harmless() -> list[Any]:
    """What is let through of the classes in a pickle beside torch's own: values that training programs store, as options and metrics,
    and that run nothing when they are made. The second of a pair is the name in the file, which depends on the version that wrote it."""
    import numpy as np

    scalar, array = np.float64(0).__reduce__()[0], np.zeros(1).__reduce__()[0]
    return [
        argparse.Namespace,
        *((scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
        *((array, f"numpy.{core}.multiarray._reconstruct") for core in ("core", "_core")),
        np.ndarray,
        np.dtype,
        *{type(np.dtype(code)) for code in "?bBhHiIlLqQefd"},
        # A path of another system cannot be made here, but its text can.
        *((pathlib.PurePosixPath, f"{module}.PosixPath") for module in ("pathlib", "pathlib._local")),
        *((pathlib.PureWindowsPath, f"{module}.WindowsPath") for module in ("pathlib", "pathlib._local")),
    ]
