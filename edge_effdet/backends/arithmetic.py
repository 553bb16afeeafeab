"""What INT8 is on a processor: in how many bits a backend's kernels add products, and which weights are exact there.

A convolution in INT8 multiplies activations of 8 bits by weights of 8 bits and adds the products. Where the sum is kept in 32 bits
the result is exact. x86 processors without VNNI have no such instruction: ``vpmaddubsw`` multiplies unsigned activations by signed
weights and adds **pairs** of products in 16 bits, which saturate. A pair reaches 2 x 255 x 127 = 64770, and 16 bits hold 32767. A
detector that is right on one processor then finds other boxes on another one, with the same file and without a word.

With weights between -63 and 63 a pair reaches 2 x 255 x 63 = 32130, so nothing saturates and every processor computes the same. It
costs one bit of the weights. oneDNN's guide calls this "Nuances of int8 computations"; NNCF's ``overflow_fix`` and onnxruntime's
``reduce_range`` do the same.

onnxruntime's quantized kernels saturate likewise with its default options. Our own runner asks for the exact ones
(``session.x64quantprecision``), which multiply unsigned by unsigned, so what it says of onnxruntime is said of our runner; that other
programs run the same file is why weights are limited for it all the same.

Arm's kernels multiply signed by signed, where a pair reaches 2 x 128 x 127 = 32512 and fits into 16 bits, or have SDOT and SMMLA,
which add in 32 bits, as do a GPU's ``dp4a`` and its integer tensor cores.

Sources: oneDNN, developer guide, "Nuances of int8 computations" (OpenVINO's kernels on x86); onnxruntime, "Quantize ONNX models",
the section on U8S8 and ``reduce_range``; Arm Architecture Reference Manual, SMULL, SADALP, SDOT, SMMLA; CUDA C++ Programming Guide,
``__dp4a``.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from edge_effdet.backends.base import get_backend
from edge_effdet.backends.cores import cpu_flags, processor_family

FULL_RANGE = 127
"""The largest code of a weight where products are added in 32 bits."""

EXACT_EVERYWHERE = 63
"""The largest code of a weight whose products with two activations of 8 bits fit into 16 bits: 2 x 255 x 63 = 32130."""

VNNI = frozenset({"avx512_vnni", "avx_vnni", "amx_int8"})
"""Instruction sets of x86, as Linux names them, that add INT8 products in 32 bits."""

DOT_PRODUCTS = frozenset({"asimddp", "i8mm"})
"""The same of Arm. Without them Arm is slower and exact all the same."""


@dataclass(frozen=True, slots=True)
class Arithmetic:
    """How a backend computes INT8 on a processor.

    Attributes:
        accumulator_bits: 32 where sums of products are exact, 16 where pairs of products saturate.
        dot_products: whether INT8 products are multiplied and added by one instruction, which makes INT8 faster than FP32.
        rest: the types in which what is not INT8 may run, the preferred one first; a graph in FP32 always runs in FP32.
    """

    accumulator_bits: int
    dot_products: bool
    rest: tuple[str, ...]

    @property
    def saturates(self) -> bool:
        return self.accumulator_bits < 32

    @property
    def exact_weight_codes(self) -> int:
        """The largest code of a weight that is exact in this arithmetic."""
        return EXACT_EVERYWHERE if self.saturates else FULL_RANGE


def int8_arithmetic(backend: str, flags: Collection[str] | None = None, family: str | None = None) -> Arithmetic:
    """How a backend computes INT8 on this processor, or on another one.

    Args:
        backend: a name of ``backends.base.BACKENDS``.
        flags: the processor's instruction sets, as Linux names them; None for those of this one.
        family: ``x86``, ``arm`` or another; None for this one's.
    """
    traits = get_backend(backend).TRAITS
    if not traits.on_cpu:
        return Arithmetic(32, True, ("fp16", "fp32"))
    known = cpu_flags() if flags is None else frozenset(flags)
    family = family or processor_family()
    if family == "arm":
        halves = ("fp16",) if traits.uses_halves and "asimdhp" in known else ()
        return Arithmetic(32, not known.isdisjoint(DOT_PRODUCTS), (*halves, "fp32"))
    fast = not known.isdisjoint(VNNI)
    halves = tuple(
        name
        for name, needed in (("fp16", {"avx512_fp16", "amx_fp16"}), ("bf16", {"avx512_bf16", "amx_bf16"}))
        if traits.uses_halves and not known.isdisjoint(needed)
    )
    # A processor that is neither x86 nor Arm is not known to add in 32 bits.
    exact = family == "x86" and (fast or not traits.saturates)
    return Arithmetic(32 if exact else 16, fast, (*halves, "fp32"))


def portable_weight_codes(backend: str) -> int:
    """The largest code of a weight that is exact on every processor on which the backend runs."""
    return EXACT_EVERYWHERE if get_backend(backend).TRAITS.on_cpu else FULL_RANGE


def cpu_has_dot_products() -> bool:
    """Whether this processor multiplies and adds INT8 in one instruction (x86 VNNI, Arm dot product)."""
    return not cpu_flags().isdisjoint(VNNI | DOT_PRODUCTS)
