"""What a result of an engine depends on besides the engine: backend, its version, and the processor's instruction sets or the GPU.

The number of cores, the clock and the name of the processor are not part of it: they change how fast an engine is and not what it
finds. Two machines with one fingerprint run the same kernels.
"""

from __future__ import annotations

from edge_effdet.artifacts.record import Fingerprint
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


def describe_machine(machine: Fingerprint) -> str:
    """A fingerprint for people: what tells two processors apart in INT8, and the runtime."""
    # OpenVINO's version goes on with the build's number and branch.
    runtime = f"{machine.backend} {machine.version.partition('-')[0]}"
    if not get_backend(machine.backend).TRAITS.on_cpu:
        return f"{machine.processor}, {runtime}"
    if machine.processor == "arm":
        return f"Arm, {runtime}"
    widest = next((name for name in ("avx512f", "avx2", "avx", "sse4_2") if name in machine.instructions), "")
    vnni = "without" if VNNI.isdisjoint(machine.instructions) else "with"
    return f"{' '.join(filter(None, (machine.processor, widest)))} {vnni} VNNI, {runtime}"


def machine_fingerprint(backend: str) -> Fingerprint:
    """The fingerprint of this machine. Raises BackendUnavailable where the backend does not work here."""
    available = require(backend)
    if not get_backend(backend).TRAITS.on_cpu:
        return Fingerprint(backend, available.version, available.device, ())
    instructions = tuple(sorted(cpu_flags() & INSTRUCTION_SETS))
    return Fingerprint(backend, available.version, processor_family(), instructions)
