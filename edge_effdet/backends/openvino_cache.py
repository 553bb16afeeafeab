"""What OpenVINO compiled, kept in a file for the next start, which takes a fraction of a second then in place of seconds.

OpenVINO has a cache of its own. It knows a processor by its name alone, which is the same for ones with other instructions, trusts what
it reads, and never deletes. The engine's hash is checked before it runs, so what runs in its place has to be: the file begins with the
SHA-256 of all that follows and of what it belongs to. Then come the type that it computes in, a line end, and OpenVINO's own export. The hash finds
damage; that nobody else has written the file is seen by whose it is (``runtime_cache``).
"""

from __future__ import annotations

import hashlib
import io
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edge_effdet.artifacts import text_sha256
from edge_effdet.backends.cores import cpu_flags
from edge_effdet.backends.runtime_cache import read_private, write_private
from edge_effdet.errors import InputError

logger = logging.getLogger("edge_effdet.backends.openvino")

PRECISION = "INFERENCE_PRECISION_HINT"


def identity(core: Any, device: str, engine_sha256: str, flags: frozenset[str] | None = None) -> str:
    """What a compiled model belongs to, as a SHA-256: engine, OpenVINO, and the processor with its instructions.

    Args:
        core: OpenVINO's.
        device: its name in OpenVINO.
        engine_sha256: of the engine's file.
        flags: the processor's instruction sets; None for those of this one.
    """
    import openvino

    said = [core.get_property(device, name) for name in ("FULL_DEVICE_NAME", "OPTIMIZATION_CAPABILITIES")]
    named = sorted(cpu_flags() if flags is None else flags)
    return text_sha256(repr((engine_sha256, openvino.__version__, *map(str, said), *named)))


def read_compiled(path: Path, belongs_to: str, core: Any, device: str, hints: Mapping[str, Any]) -> Any | None:
    """The compiled model of an earlier start; None where there is none, or it is of something else, or damaged."""
    content = read_private(path)
    if content is None:
        return None
    digest, kept = content[:32], content[32:]
    if digest != _digest(belongs_to, kept):
        logger.info("%s is of another engine, version or processor, or damaged, and is replaced", path)
        return None
    precision, _, exported = kept.partition(b"\n")
    try:
        return core.import_model(io.BytesIO(exported), device, {**hints, PRECISION: precision.decode()})
    except RuntimeError as error:
        logger.info("%s cannot be loaded (%s) and is replaced", path, error)
        return None


def save_compiled(model: Any, precision: str, path: Path, belongs_to: str) -> None:
    """Write a compiled model. One that cannot be written is worth a warning only: the next start compiles again."""
    stream = io.BytesIO()
    model.export_model(stream)
    kept = precision.encode() + b"\n" + stream.getvalue()
    try:
        write_private(path, _digest(belongs_to, kept) + kept)
    except (InputError, OSError) as error:
        logger.warning("what OpenVINO compiled is not kept for the next start: %s", error)


def _digest(belongs_to: str, kept: bytes) -> bytes:
    return hashlib.sha256(belongs_to.encode() + kept).digest()
