"""What OpenVINO compiled, kept in a file for the next start, which takes a fraction of a second then in place of seconds.

OpenVINO has a cache of its own. It knows a processor by its name alone, which is the same for ones with other instructions, trusts what
it reads, and never deletes. The engine's hash is checked before it runs, so what runs in its place has to be: the file begins with the
SHA-256 of all that follows and of what it belongs to.
"""

from __future__ import annotations

import hashlib
import io
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edge_effdet.artifacts import atomic_output
from edge_effdet.errors import InputError

logger = logging.getLogger("edge_effdet.backends.openvino")

_CPUINFO = Path("/proc/cpuinfo")


def identity(core: Any, device: str, engine_sha256: str, precision: str, cpuinfo: Path = _CPUINFO) -> str:
    """What a compiled model belongs to: engine, type that it computes in, OpenVINO, and the processor with its instructions.

    Args:
        core: OpenVINO's.
        device: its name in OpenVINO.
        engine_sha256: of the engine's file.
        precision: OpenVINO's name of the type.
        cpuinfo: the kernel's file; where it is none, what OpenVINO says of the processor has to do.
    """
    import openvino

    said = [core.get_property(device, name) for name in ("FULL_DEVICE_NAME", "OPTIMIZATION_CAPABILITIES")]
    flags = []
    if cpuinfo.is_file():
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
        flags = sorted({line for line in lines if line.lower().startswith(("flags", "features"))})
    return repr((engine_sha256, precision, openvino.__version__, *map(str, said), *flags))


def read_compiled(path: Path, belongs_to: str, core: Any, device: str, hints: Mapping[str, Any]) -> Any | None:
    """The compiled model of an earlier start; None where there is none, or it is of something else, or damaged."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    digest, exported = content[:32], content[32:]
    if digest != _digest(belongs_to, exported):
        logger.info("%s is of another engine, version or processor, or damaged, and is replaced", path)
        return None
    try:
        return core.import_model(io.BytesIO(exported), device, dict(hints))
    except RuntimeError as error:
        logger.info("%s cannot be loaded (%s) and is replaced", path, error)
        return None


def save_compiled(model: Any, path: Path, belongs_to: str) -> None:
    """Write a compiled model. One that cannot be written is worth a warning only: the next start compiles again."""
    stream = io.BytesIO()
    model.export_model(stream)
    exported = stream.getvalue()
    try:
        with atomic_output(path) as temporary:
            temporary.write_bytes(_digest(belongs_to, exported) + exported)
    except InputError as error:
        logger.warning("what OpenVINO compiled is not kept for the next start: %s", error)


def _digest(belongs_to: str, exported: bytes) -> bytes:
    return hashlib.sha256(hashlib.sha256(belongs_to.encode()).digest() + exported).digest()
