"""What the GPU check measures in torch: the best that the machine reaches, networks, pairs of convolutions, and training steps."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.graph_subjects import Skipped, Subject

if TYPE_CHECKING:
    import torch

    from benchmarks.gpu_check_engines import Way
    from edge_effdet.graph.cost import SeparablePair

MATRIX_SIDE = 8192
COPIED_BYTES = 1 << 30
TRANSFERRED_BYTES = 1 << 28
EMPTY_KERNELS = 1000
REPEATS = 20


def find_gpu() -> dict[str, Any] | Skipped:
    """The GPU as torch describes it, or why torch finds none."""
    try:
        import torch
    except ImportError as error:
        return Skipped(f"torch cannot be imported ({error})")
    if not torch.cuda.is_available():
        built = torch.version.cuda
        return Skipped("torch finds no GPU" if built else "this torch is a build without CUDA")
    properties = torch.cuda.get_device_properties(0)
    return {
        "name": properties.name,
        "compute_capability": [properties.major, properties.minor],
        "multiprocessors": properties.multi_processor_count,
        "memory_gib": round(properties.total_memory / 2**30, 1),
        "cuda": torch.version.cuda,
        "torch": torch.__version__,
    }


def measure_floor() -> dict[str, float]:
    """Measure GB/s of the memory and of the bus, dense TFLOP/s or TOP/s of matrix products, and microseconds of an empty kernel.

    A copy in memory counts both the bytes read and the bytes written. The products are of two square matrices and run on tensor cores,
    except that of FP32 without TF32. An empty kernel is an addition to one number; a thousand of them run in one CUDA graph.
    """
    import torch

    source = torch.empty(COPIED_BYTES, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    pinned = torch.empty(TRANSFERRED_BYTES, dtype=torch.uint8, pin_memory=True)
    floor = {
        "memory_gbs": 2 * COPIED_BYTES / _seconds(lambda: target.copy_(source)) / 1e9,
        "to_gpu_gbs": TRANSFERRED_BYTES
        / _seconds(lambda: source[:TRANSFERRED_BYTES].copy_(pinned, non_blocking=True))
        / 1e9,
        "from_gpu_gbs": TRANSFERRED_BYTES
        / _seconds(lambda: pinned.copy_(source[:TRANSFERRED_BYTES], non_blocking=True))
        / 1e9,
    }
    for name, dtype, tf32 in (
        ("fp32_tflops", torch.float32, False),
        ("tf32_tflops", torch.float32, True),
        ("fp16_tflops", torch.float16, True),
        ("bf16_tflops", torch.bfloat16, True),
    ):
        torch.backends.cuda.matmul.allow_tf32 = tf32
        left, right = (torch.randn(MATRIX_SIDE, MATRIX_SIDE, device="cuda").to(dtype) for _ in range(2))
        floor[name] = 2 * MATRIX_SIDE**3 / _seconds(lambda left=left, right=right: left @ right) / 1e12
    left, right = (
        torch.randint(-127, 128, (MATRIX_SIDE, MATRIX_SIDE), dtype=torch.int8, device="cuda") for _ in range(2)
    )
    # cuBLAS wants the second INT8 matrix stored by columns.
    by_columns = right.t().contiguous().t()
    floor["int8_tops"] = 2 * MATRIX_SIDE**3 / _seconds(lambda: torch._int_mm(left, by_columns)) / 1e12
    number = torch.zeros(1, device="cuda")
    floor["empty_kernel_us"] = 1e6 * _seconds(_in_graph(lambda: number.add_(1), EMPTY_KERNELS)) / EMPTY_KERNELS
    return floor


def open_torch(subject: Subject, precision: str, batch: int, compiled: bool) -> Way:
    """Open the network in torch, from uint8 pictures on the host to results on the host. FP32 may use TF32, as in TensorRT."""
    import torch

    from benchmarks.gpu_check_engines import Way
    from edge_effdet.models.detector import DetectionModule

    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = True
    # The network is copied, because the original has to stay on the CPU, where graphs are exported from it.
    network = copy.deepcopy(subject.network)
    detector: Any = DetectionModule(network, subject.spec).cuda().eval().to(memory_format=torch.channels_last)
    # Without a reset, torch would compile the next batch size as a program with a dynamic batch.
    torch.compiler.reset()
    forward = torch.compile(detector, mode="max-autotune", dynamic=False) if compiled else detector
    pinned = torch.empty(batch, 3, *subject.spec.image_size, dtype=torch.uint8, pin_memory=True)
    start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def call(images: np.ndarray) -> dict[str, np.ndarray]:
        half = torch.autocast("cuda", dtype=torch.float16, enabled=precision == "fp16")
        with torch.inference_mode(), half:
            pixels = pinned.copy_(torch.from_numpy(images)).to("cuda", non_blocking=True)
            start.record()
            boxes, scores, class_ids = forward(pixels)
            stop.record()
            return {
                "boxes": boxes.float().cpu().numpy(),
                "scores": scores.float().cpu().numpy(),
                "class_ids": class_ids.cpu().numpy(),
            }

    return Way(call, lambda: start.elapsed_time(stop), lambda: None)


def time_pair(pair: SeparablePair, batch: int) -> tuple[float, float]:
    """Microseconds of a depthwise and a pointwise convolution, and of the dense one in their place.

    They run by cuDNN in FP16 with channels last, a hundred times in one CUDA graph.
    """
    import torch
    from torch.nn import functional

    torch.backends.cudnn.benchmark = True
    shape = (batch, pair.channels_in, pair.height * pair.stride[0], pair.width * pair.stride[1])

    def tensor(*size: int) -> torch.Tensor:
        made = torch.randn(*size, device="cuda", dtype=torch.float16)
        return made.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    pixels = tensor(*shape)
    depthwise, pointwise = (
        tensor(pair.channels_in, 1, *pair.kernel),
        tensor(pair.channels_out, pair.channels_in, 1, 1),
    )
    dense = tensor(pair.channels_out, pair.channels_in, *pair.kernel)
    padding = tuple(size // 2 for size in pair.kernel)

    def keep() -> None:
        between = functional.conv2d(pixels, depthwise, stride=pair.stride, padding=padding, groups=pair.channels_in)
        functional.conv2d(between, pointwise)

    def fused() -> None:
        functional.conv2d(pixels, dense, stride=pair.stride, padding=padding)

    keep_graph, fused_graph = _in_graph(keep, 100), _in_graph(fused, 100)
    return 1e4 * _seconds(keep_graph), 1e4 * _seconds(fused_graph)


def time_training(subject: Subject, batch: int, rounds: int) -> list[dict[str, Any]]:
    """Time our training step in BF16, plain and compiled, against the step of a plain effdet loop."""
    from benchmarks.training import OURS, compare_steps

    rows = []
    for name, flags in (("ours", ()), ("ours, compiled", ("--compile",))):
        for row in compare_steps(subject.spec, batch, rounds, "cuda", "bf16", flags):
            kept = {key: value for key, value in row.items() if key != "milliseconds"}
            rows.append(kept | {"way": name if row["way"] == OURS else row["way"], "beside": name, "batch": batch})
    return rows


def _in_graph(work: Callable[[], object], times: int) -> Callable[[], None]:
    import torch

    stream = torch.cuda.Stream()
    with torch.inference_mode(), torch.cuda.stream(stream):
        for _ in range(3):
            work()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.inference_mode(), torch.cuda.graph(graph, stream=stream):
        for _ in range(times):
            work()
    return graph.replay


def _seconds(work: Callable[[], object]) -> float:
    """The seconds of the fastest of ``REPEATS`` runs, by CUDA events: other work only adds time."""
    import torch

    for _ in range(3):
        work()
    best = float("inf")
    for _ in range(REPEATS):
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        work()
        stop.record()
        stop.synchronize()
        best = min(best, start.elapsed_time(stop) / 1000)
    return best
