"""What a result of an engine depends on besides the engine: backend, its version, and the processor's instruction sets or the GPU.

The number of cores, the clock and the name of the processor are not part of it: they change how fast an engine is and not what it
finds. Two machines with one fingerprint run the same kernels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from edge_effdet.artifacts import text_sha256
from edge_effdet.backends.arithmetic import VNNI
from edge_effdet.backends.base import get_backend, require
from edge_effdet.backends.cores import cpu_flags, processor_family

INSTRUCTION_SETS = frozenset(
    {
        *("sse4_1", "sse4_2", "avx", "avx2", "fma", "f16c"),
        *("avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_vnni", "avx512_bf16", "avx512_fp16"),
        *("avx_vnni", "avx_vnni_int8", "avx_ne_convert", "amx_tile", "amx_int8", "amx_bf16", "amx_fp16", "avx10_2"),
        *("asimd", "asimdhp", "asimddp", "i8mm", "bf16", "sve", "sve2", "sme"),
    }
)
"""Those for which a runtime has kernels of its own, as Linux names them. Others, as for encryption, change no result."""


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """A machine as an engine sees it.

    Attributes:
        backend: a name of ``backends.base.BACKENDS``.
        version: of its runtime.
        processor: ``x86``, ``arm`` or another family, or the GPU.
        instructions: the ``INSTRUCTION_SETS`` that the processor has, sorted; empty for a GPU.
    """

    backend: str
    version: str
    processor: str
    instructions: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "instructions": list(self.instructions)}

    @property
    def sha256(self) -> str:
        return text_sha256(repr(self))

    def text(self) -> str:
        """For people: what tells two processors apart in INT8, and the runtime."""
        # OpenVINO's version goes on with the build's number and branch.
        runtime = f"{self.backend} {self.version.partition('-')[0]}"
        if not get_backend(self.backend).TRAITS.on_cpu:
            return f"{self.processor}, {runtime}"
        if self.processor == "arm":
            kind = "Arm"
        else:
            widest = next((name for name in ("avx512f", "avx2", "avx", "sse4_2") if name in self.instructions), "")
            kind = f"{' '.join(filter(None, (self.processor, widest)))} {'without' if VNNI.isdisjoint(self.instructions) else 'with'} VNNI"
        return f"{kind}, {runtime}"


def read_fingerprint(raw: Mapping[str, Any]) -> Fingerprint:
    """What ``to_dict`` wrote. Raises KeyError or TypeError where it is damaged."""
    return Fingerprint(
        str(raw["backend"]), str(raw["version"]), str(raw["processor"]), tuple(map(str, raw["instructions"]))
    )


def machine_fingerprint(backend: str) -> Fingerprint:
    """This machine's. Raises BackendUnavailable where the backend does not work here."""
    available = require(backend)
    if not get_backend(backend).TRAITS.on_cpu:
        return Fingerprint(backend, available.version, available.device, ())
    instructions = tuple(sorted(cpu_flags() & INSTRUCTION_SETS))
    return Fingerprint(backend, available.version, processor_family(), instructions)
