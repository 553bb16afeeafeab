"""What the processor reaches at best: the rates of matrix products, and of copying memory. They are the roof of the roofline model
(Williams, Waterman and Patterson, "Roofline: an insightful visual performance model for multicore architectures", CACM 52(4), 2009).

They are of the CPU. What a GPU reaches is not measured yet.
"""

from __future__ import annotations

import itertools
import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from edge_effdet.backends.cores import usable_cpus
from edge_effdet.benchmarking.record import Peaks
from edge_effdet.device.kernel_files import read_fields, read_text

logger = logging.getLogger("edge_effdet.benchmarking")

SMALL, LARGE = 512, 2048
"""The side of the square matrices for up to ``FEW`` threads and for more. A product of few milliseconds goes undisturbed on a busy machine too,
as a layer does that it is compared with; many threads need a larger one."""

FEW = 4

CACHES = 4
"""How many times as large as the caches an array is, as STREAM asks of its users."""

_SMALLEST, _LARGEST = 64 << 20, 512 << 20
"""Bytes of an array that is copied."""

_PIECE = 32 << 20
"""Bytes of it that are copied at a time."""

_LIMITS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")
_UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
_INT8 = (("uint8", "int8"), ("uint8", "uint8"), ("int8", "int8"))
"""Types of the two matrices. Which pair is the fastest depends on the processor."""


def measure_peaks(threads: int, seconds: float = 3.0) -> Peaks | None:
    """Measure what this machine reaches at best with so many threads.

    The rate of a float32 product is that of NumPy or of onnxruntime, whichever is faster; that of an INT8 product is onnxruntime's, and
    null where onnxruntime or onnx is not installed. On x86 without VNNI its fastest kernel adds pairs of products in 16 bits, as OpenVINO's
    convolutions do and those of the backend onnxruntime do not.

    The bandwidth is that of STREAM's kernel Copy (McCalpin, "Memory bandwidth and machine balance in current high performance
    computers", 1995), counted as STREAM counts: each byte once where it is read, and once where it is written. What a processor reads
    because it is about to write there (write-allocate) is not counted. Tensors that stay in a cache move faster than that.

    Args:
        threads: how many threads a product has, and how many copy; 1 or more.
        seconds: about how long all of it takes; each product and the copy run twice at least. The fastest run of each counts.

    Returns:
        The peaks; None where the process that measures them fails, which is logged.
    """
    # NumPy's libraries read the number of threads once, when they are loaded.
    limits = dict.fromkeys(_LIMITS, str(threads))
    code = f"import json; from {__name__} import measure_here; print(json.dumps(measure_here({threads}, {seconds})))"
    try:
        done = subprocess.run(
            [sys.executable, "-c", code],
            env=os.environ | limits,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=True,
            timeout=120 + 10 * seconds,
        )
        return Peaks(**json.loads(done.stdout), threads=threads)
    except (OSError, subprocess.SubprocessError, ValueError, TypeError) as error:
        said = str(getattr(error, "stderr", None) or "").strip().splitlines()
        logger.warning("what this machine reaches at best was not measured: %s", said[-1] if said else error)
        return None


def measure_here(threads: int, seconds: float) -> dict[str, Any]:
    """The fields of ``Peaks`` but for ``threads``, measured in this process, whose libraries have this many threads."""
    side = SMALL if threads <= FEW else LARGE
    products = float_product(side) | onnxruntime_product(threads, side, "float32", "float32")
    codes: dict[str, Callable[[], object]] = {}
    for pair in _INT8:
        codes |= onnxruntime_product(threads, side, *pair)
    float_rate, float_way = _fastest(products, side, seconds / 3)
    int8_rate, int8_way = _fastest(codes, side, seconds / 3) if codes else (None, "")
    size = array_bytes()
    rate = copy_rate(threads, size, seconds / 3)
    memory = f"an array of {size >> 20} MiB copied, counted as read and as written"
    return {
        "fp32_gflops": float_rate,
        "int8_gops": int8_rate,
        "bandwidth_gb_s": rate,
        "how": "; ".join(filter(None, (float_way, int8_way, memory))),
    }


def float_product(side: int) -> dict[str, Callable[[], object]]:
    """NumPy's product of two square float32 matrices, and its name."""
    left, right = (np.random.default_rng(seed).random((side, side), np.float32) for seed in (0, 1))
    return {
        f"NumPy's product of float32 matrices of {side} x {side}": partial(
            np.matmul, left, right, out=np.empty_like(left)
        )
    }


def onnxruntime_product(threads: int, side: int, left: str, right: str) -> dict[str, Callable[[], object]]:
    """onnxruntime's product of two square matrices, and its name; nothing where onnxruntime or onnx does not offer it.

    Args:
        threads: threads of the product.
        side: the side of the matrices.
        left, right: the types of the two, ``float32`` or of 8 bits; the second one is a constant, as weights are.
    """
    try:
        import onnx
        import onnxruntime as ort
    except ImportError:
        return {}
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = threads
    operator, result = ("MatMul", "float32") if left == "float32" else ("MatMulInteger", "int32")
    rng = np.random.default_rng(0)
    first, second = (rng.integers(0, 100, (side, side)).astype(kind) for kind in (left, right))
    taken, given = (
        onnx.helper.make_tensor_value_info(name, onnx.helper.np_dtype_to_tensor_dtype(np.dtype(kind)), [side, side])
        for name, kind in (("a", left), ("c", result))
    )
    node = onnx.helper.make_node(operator, ["a", "b"], ["c"])
    graph = onnx.helper.make_graph([node], "product", [taken], [given], [onnx.numpy_helper.from_array(second, "b")])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=10)
    try:
        session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception:  # onnxruntime raises classes of its C++ module; it may lack the kernel of a pair of types
        return {}
    kinds = left if left == right else f"{left} and {right}"
    return {f"onnxruntime's product of {kinds} matrices of {side} x {side}": partial(session.run, None, {"a": first})}


def copy_rate(threads: int, size: int, seconds: float) -> float:
    """GB/s, read and written, of copying an array of ``size`` bytes piece by piece. The fastest piece counts, a part of which each thread copies.

    A piece is short enough to go undisturbed, and has left the caches when its turn comes again.
    """
    # Both are written here, so that no page is made while it is copied.
    source, target = np.ones(size // 8), np.ones(size // 8)
    count = max(1, size // _PIECE)
    pieces = [
        list(zip(*(np.array_split(part, threads) for part in piece), strict=True))
        for piece in zip(np.array_split(target, count), np.array_split(source, count), strict=True)
    ]
    turns = itertools.cycle(pieces)
    with ThreadPoolExecutor(threads) as pool:
        # NumPy lets other threads run while it copies.
        best = _shortest(lambda: list(pool.map(lambda part: np.copyto(*part), next(turns))), seconds)
    return 2 * source.nbytes / count / best / 1e9


def array_bytes(proc: Path = Path("/proc"), sys: Path = Path("/sys"), cpus: set[int] | None = None) -> int:
    """Bytes of an array that the caches cannot hold: ``CACHES`` times the caches farthest from the processors that this process may use.

    It is 64 MiB at least, and an eighth of the free memory or 512 MiB at most.

    Args:
        proc, sys: where the kernel's files are mounted.
        cpus: the logical cores that this process may use; None to ask the system.
    """
    last: dict[tuple[int, str], int] = {}
    for cpu in usable_cpus() if cpus is None else cpus:
        caches = (sys / "devices" / "system" / "cpu" / f"cpu{cpu}" / "cache").glob("index*")
        found = [(int(read_text(each / "level") or 0), _cache_bytes(each), _shared_by(each, cpu)) for each in caches]
        if found:
            level, size, shared = max(found)
            last[level, shared] = size
    free = read_fields(proc / "meminfo").get("MemAvailable", "").split()
    most = min(_LARGEST, (int(free[0]) << 10) // 8) if free else _LARGEST
    return min(max(CACHES * sum(last.values()), _SMALLEST), max(most, 1 << 20))


def _cache_bytes(cache: Path) -> int:
    text = read_text(cache / "size") or "0"
    return int(text[:-1]) * _UNITS[text[-1]] if text[-1] in _UNITS else int(text)


def _shared_by(cache: Path, cpu: int) -> str:
    return read_text(cache / "shared_cpu_list") or str(cpu)


def _fastest(products: Mapping[str, Callable[[], object]], side: int, seconds: float) -> tuple[float, str]:
    """Billions of operations a second of the fastest product, and its name."""
    # One after the other: the threads of the last one spin for a moment, and would take turns with those of the next.
    times = {name: _shortest(product, seconds / len(products)) for name, product in products.items()}
    name = min(times, key=times.__getitem__)
    return 2 * side**3 / times[name] / 1e9, name


def _shortest(call: Callable[[], object], seconds: float) -> float:
    """The seconds of the shortest of some calls, two at least, after one that does not count."""
    call()
    end = time.perf_counter() + seconds
    times: list[float] = []
    while len(times) < 2 or time.perf_counter() < end:
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    return min(times)
