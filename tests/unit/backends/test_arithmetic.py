"""Which weights are exact on which processor, by the table and by adding up what the instructions add."""

from __future__ import annotations

import numpy as np
import pytest

from edge_effdet.backends.arithmetic import EXACT_EVERYWHERE, FULL_RANGE, int8_arithmetic, portable_weight_codes
from edge_effdet.backends.base import BACKENDS

AVX2 = {"sse4_2", "avx", "avx2", "fma"}


@pytest.mark.parametrize(
    ("backend", "family", "flags", "saturates", "dot_products", "rest"),
    [
        ("openvino", "x86", {"sse4_2"}, True, False, ("fp32",)),
        ("openvino", "x86", AVX2, True, False, ("fp32",)),
        ("openvino", "x86", AVX2 | {"avx512f", "avx512bw"}, True, False, ("fp32",)),
        ("openvino", "x86", AVX2 | {"avx_vnni"}, False, True, ("fp32",)),
        ("openvino", "x86", AVX2 | {"avx512f", "avx512_vnni", "avx512_bf16"}, False, True, ("bf16", "fp32")),
        ("openvino", "x86", AVX2 | {"avx512_fp16", "avx512_bf16", "amx_int8"}, False, True, ("fp16", "bf16", "fp32")),
        ("openvino", "arm", {"asimd"}, False, False, ("fp32",)),
        ("openvino", "arm", {"asimd", "asimddp", "asimdhp"}, False, True, ("fp16", "fp32")),
        ("openvino", "riscv64", set(), True, False, ("fp32",)),
        ("onnxruntime", "x86", AVX2, False, False, ("fp32",)),
        ("onnxruntime", "arm", {"asimd"}, False, False, ("fp32",)),
        ("tensorrt", "x86", AVX2, False, True, ("fp16", "fp32")),
        ("tensorrt-rtx", "arm", set(), False, True, ("fp16", "fp32")),
    ],
)
def test_what_int8_is_on_a_processor(backend, family, flags, saturates, dot_products, rest):
    found = int8_arithmetic(backend, flags, family)
    assert (found.saturates, found.dot_products, found.rest) == (saturates, dot_products, rest)
    assert found.exact_weight_codes == (EXACT_EVERYWHERE if saturates else FULL_RANGE)


@pytest.mark.parametrize("backend", BACKENDS)
def test_engines_for_cpus_are_portable(backend):
    on_gpu = backend in ("tensorrt", "tensorrt-rtx", "onnxruntime-cuda")
    assert portable_weight_codes(backend) == (FULL_RANGE if on_gpu else EXACT_EVERYWHERE)


@pytest.mark.parametrize(("code", "exact"), [(EXACT_EVERYWHERE, True), (64, True), (65, False), (FULL_RANGE, False)])
def test_pairs_of_products_fit_into_16_bits(code, exact):
    """What ``vpmaddubsw`` adds: two products of an unsigned activation and a signed weight, saturated."""
    pair = 2 * 255 * np.array([-code, code])
    limits = np.iinfo(np.int16)
    assert bool((np.clip(pair, limits.min, limits.max) == pair).all()) == exact


def test_arm_adds_pairs_of_signed_products_exactly():
    assert 2 * 128 * FULL_RANGE <= np.iinfo(np.int16).max
