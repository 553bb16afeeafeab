"""The parts of the GPU check, each run in a process of its own by ``benchmarks.gpu_check``.

A process that crashes, hangs or fills the GPU's memory does not end the other parts, and what it had measured is kept, because each row
is written to the part's file at once.
"""

from __future__ import annotations

import argparse
import json
import logging
import re
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from benchmarks.gpu_check_engines import (
    FLAVORS,
    Way,
    find_onnxruntime_cuda,
    open_onnxruntime_cuda,
    open_tensorrt,
    probe_flavor_here,
)
from benchmarks.gpu_check_subject import (
    collect_pairs,
    compare_outputs,
    prepare_graph,
    read_pictures,
    reference_outputs,
    suppress,
)
from benchmarks.gpu_check_torch import find_gpu, measure_floor, open_torch, time_pair, time_training
from benchmarks.graph_subjects import Skipped, Subject, attempt, read_subject
from benchmarks.latency import summarize_times, time_ways
from benchmarks.processes import ROOT
from edge_effdet.artifacts import Graph, write_json
from edge_effdet.backends.base import Unavailable
from edge_effdet.backends.tensorrt import cuda
from edge_effdet.graph.report import make_report
from edge_effdet.graph.targets import TARGETS, Rates, Target

LEAST_MATCHED = {"fp32": 0.97, "fp16": 0.9, "int8": 0.8}
"""The share of the CPU's best 100 detections that a backend must find again with the same graph. FP32 runs in TF32, whose 10 bits of
mantissa change the order of scores that are nearly equal. FP16 has as few bits in its activations too. INT8 may round a value near a
tie to the other code. A random network has many scores that are nearly equal."""
ROUNDS = 6
LATE = "the time was up"
END_SHARE = 0.85
"""The share of its time after which a part begins nothing new: what it has begun would be lost when the process is stopped."""
TRAINING_BATCH, TRAINING_ROUNDS = 16, 20
DENSE_PRECISION = "fp16"
REFERENCE_WAY = "torch eager"
"""What takes turns with each backend, so that the ratios of two parts to it can be set side by side, though their times cannot."""

TESTS = "-q -p no:cacheprovider -o addopts=--import-mode=importlib -o filterwarnings="
"""How ``tests/gpu`` is run: without what only the project's own environment has, such as pytest-xdist, and whatever the machine's packages warn of."""


@dataclass(slots=True)
class Task:
    """What a part has to do, and the rows that it has found.

    Attributes:
        model: the network, as ``graph_subjects.read_subject`` takes it.
        work: the folder that keeps graphs, engines and references between parts.
        output: the part's JSON file.
        batches, precisions: what the part goes through.
        deadline: the value of ``time.monotonic()`` after which nothing new is begun.
        rows: the rows so far.
    """

    model: str
    work: Path
    output: Path
    batches: Sequence[int]
    precisions: Sequence[str]
    deadline: float
    rows: list[dict[str, Any]] = field(default_factory=list)

    def add(self, **row: Any) -> None:
        """Add a row, and write all rows to the file."""
        self.rows.append(row)
        write_json(self.output, {"rows": self.rows})

    @property
    def is_late(self) -> bool:
        """Whether nothing new may be begun."""
        return time.monotonic() > self.deadline


def run_floor(task: Task) -> Skipped | None:
    """What the machine reaches at best, and the least time that the network would take with that."""
    gpu = find_gpu()
    if isinstance(gpu, Skipped):
        return gpu
    floor = measure_floor()
    task.add(gpu=gpu, **floor)
    graph = attempt(lambda: prepare_graph(read_subject(task.model), "keep", "fp32", task.work))
    if isinstance(graph, Skipped):
        task.add(network=task.model, skipped=graph.reason)
        return None
    for precision in task.precisions:
        task.add(network=task.model, precision=precision, **network_floor(graph, precision, floor))
    return None


def run_cuda(task: Task) -> Skipped | None:
    """Run ``tests/gpu``: buffers, streams, events and CUDA graphs by PyCUDA and cuda-python."""
    gpu = cuda.probe_gpu()
    if isinstance(gpu, Unavailable):
        return Skipped(f"{gpu.reason}; {gpu.fix}")
    words = [sys.executable, "-m", "pytest", *TESTS.split(), "tests/gpu"]
    done = subprocess.run(words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if "No module named pytest" in done.stdout:
        return Skipped("pytest is not installed; pip install pytest pytest-timeout")
    counts = {
        f"tests_{kind}": int(count) for count, kind in re.findall(r"(\d+) (passed|failed|skipped|error)", done.stdout)
    }
    task.add(
        gpu=str(gpu), command="pytest tests/gpu", **counts, said="" if done.returncode == 0 else done.stdout[-2000:]
    )
    return None


def run_backend(backend: str, task: Task) -> Skipped | None:
    """Compare one backend with the CPU, and time it in turns with torch in eager mode, by precision and batch.

    Args:
        backend: a name in ``BACKENDS``.
        task: what to go through, the first precision of the smallest batch first, so that a part that is stopped has the most telling rows.
    """
    gpu = find_gpu()
    by_driver = cuda.probe_gpu()
    if isinstance(gpu, Skipped) and isinstance(by_driver, Unavailable):
        return Skipped(f"{gpu.reason}, and {by_driver.reason}")
    version = _probe(backend)
    if isinstance(version, Skipped):
        return version
    subject = read_subject(task.model)
    task.add(way="probe", gpu=str(by_driver) if isinstance(gpu, Skipped) else gpu, **{backend: version})
    pictures = read_pictures(subject.spec, max(task.batches))
    for batch in sorted(task.batches):
        for precision in task.precisions:
            if task.is_late:
                task.add(way="all", precision=precision, batch=batch, skipped=LATE)
                continue
            graph = attempt(lambda precision=precision: prepare_graph(subject, "keep", precision, task.work))
            if isinstance(graph, Skipped):
                task.add(way="all", precision=precision, batch=batch, skipped=graph.reason)
                continue
            _compare_ways(task, backend, subject, graph, pictures[:batch])
    return None


def run_dense(task: Task) -> Skipped | None:
    """Compare depthwise + pointwise with dense convolutions: by the cost model, measured pair by pair, and in whole networks."""
    gpu = find_gpu()
    if isinstance(gpu, Skipped):
        return gpu
    from edge_effdet.graph import cost

    subject = read_subject(task.model)
    target = measured_target(gpu, measure_floor())
    found = probe_flavor_here("tensorrt")
    for pair in collect_pairs(subject):
        if task.is_late:
            break
        keep = cost.depthwise_us(pair, target, DENSE_PRECISION) + cost.pointwise_us(pair, target, DENSE_PRECISION)
        modelled = cost.Decision(pair.name, keep, cost.dense_us(pair, target, DENSE_PRECISION), "model")
        measured = cost.Decision(pair.name, *time_pair(pair, batch=1), "torch, cuDNN")
        row: dict[str, Any] = {
            "pair": pair.name,
            "channels": [pair.channels_in, pair.channels_out],
            "side": [pair.height, pair.width],
        }
        row |= {"model": _decision(modelled), "torch": _decision(measured)}
        if not isinstance(found, Skipped):
            by_engine = attempt(lambda pair=pair: cost.measure_decision(pair, DENSE_PRECISION, "tensorrt"))
            row["tensorrt"] = by_engine.reason if isinstance(by_engine, Skipped) else _decision(by_engine)
        judge: Any = row["tensorrt"] if isinstance(row.get("tensorrt"), dict) else row["torch"]
        task.add(**row, model_is_right=judge_decision(row["model"], judge))
    if not isinstance(found, Skipped) and not task.is_late:
        _compare_fusions(task, subject, gpu)
    return None


def run_training(task: Task) -> Skipped | None:
    """Time training steps."""
    gpu = find_gpu()
    if isinstance(gpu, Skipped):
        return gpu
    subject = read_subject(task.model)
    for row in time_training(subject, TRAINING_BATCH, TRAINING_ROUNDS):
        task.add(**row)
    return None


BACKENDS = ("torch", "onnxruntime", "tensorrt", "tensorrt-rtx", "compiled")
PARTS: Mapping[str, Callable[[Task], Skipped | None]] = {
    "cuda": run_cuda,
    "floor": run_floor,
    **{name: partial(run_backend, name) for name in BACKENDS if name != "compiled"},
    "dense": run_dense,
    "training": run_training,
    "compiled": partial(run_backend, "compiled"),
}
"""The parts in the order in which they run: what was never tried and what is short come first, what takes minutes to compile last."""


def network_floor(graph: Graph, precision: str, floor: Mapping[str, float]) -> dict[str, float]:
    """The least milliseconds of one picture: by its MACs at the measured matrix rate, and by its tensors at the measured bandwidth.

    Every tensor counts as written once and read once, and all layers are in one precision. A runtime that fuses layers moves less, so
    the second figure is no lower bound for it. Small layers do not reach the matrix rate, so they take longer than the first figure.
    """
    total = make_report(ir.load(str(graph.path))).total.cost
    rate = floor[{"fp32": "tf32_tflops", "fp16": "fp16_tflops", "int8": "int8_tops"}[precision]]
    moved = total.traffic.in_bytes(precision)
    return {
        "gmacs": total.macs / 1e9,
        "megabytes": moved / 1e6,
        "compute_ms": 2 * total.macs / (rate * 1e9),
        "memory_ms": moved / (floor["memory_gbs"] * 1e6),
    }


def measured_target(gpu: Mapping[str, Any], floor: Mapping[str, float]) -> Target:
    """The GPU as a target of the cost model, with measured rates and bandwidth. CUDA cores are taken to do FP16 at the FP32 rate."""
    major, minor = gpu["compute_capability"]
    like = TARGETS["rtx-4090"]
    return replace(
        like,
        title=gpu["name"],
        compute_capability=(major, minor),
        multiprocessors=gpu["multiprocessors"],
        matrix=Rates(fp32=floor["tf32_tflops"], fp16=floor["fp16_tflops"], int8=floor["int8_tops"]),
        vector=Rates(fp32=floor["fp32_tflops"], fp16=floor["fp32_tflops"], int8=floor["fp32_tflops"]),
        bandwidth=floor["memory_gbs"],
        launch_us=floor["empty_kernel_us"],
        source="measured by benchmarks.gpu_check",
    )


def judge_decision(modelled: Mapping[str, Any], measured: Mapping[str, Any]) -> bool:
    """Whether the choice of the model is the faster one, or at most a tenth slower than that."""
    chosen = measured["dense_us"] if modelled["dense"] else measured["keep_us"]
    return chosen <= 1.1 * min(measured["dense_us"], measured["keep_us"])


def _decision(decision: Any) -> dict[str, Any]:
    return {
        "keep_us": round(decision.keep_us, 3),
        "dense_us": round(decision.dense_us, 3),
        "dense": decision.dense,
        "basis": decision.basis,
    }


def _probe(backend: str) -> dict[str, Any] | str | Skipped:
    """The version of a backend, and what it says of the GPU, or why it cannot be tried."""
    if backend in ("torch", "compiled"):
        found = find_gpu()
        return found if isinstance(found, Skipped) else found["torch"]
    if backend == "onnxruntime":
        return find_onnxruntime_cuda()
    flavor = probe_flavor_here(backend)
    return flavor if isinstance(flavor, Skipped) else flavor[1]


def _openers(backend: str, subject: Subject, graph: Graph, batch: int) -> dict[str, Callable[[], Way] | Skipped]:
    """How each way of one backend, precision and batch is opened, or why it is not tried; torch in eager mode first."""
    ways: dict[str, Callable[[], Way] | Skipped] = {}
    seen = find_gpu()
    if not isinstance(seen, Skipped) and graph.precision == "int8":
        seen = Skipped("torch has no INT8 path for this network")
    by_torch = [(REFERENCE_WAY, False), ("torch.compile max-autotune", True)][: 2 if backend == "compiled" else 1]
    for name, compiled in by_torch:
        ways[name] = (
            seen if isinstance(seen, Skipped) else partial(open_torch, subject, graph.precision, batch, compiled)
        )
    if backend == "onnxruntime":
        found = find_onnxruntime_cuda()
        if graph.precision == "int8":
            found = Skipped("onnxruntime's CUDA kernels do not compute these Q/DQ graphs in INT8")
        for name, captured in (("onnxruntime CUDA", False), ("onnxruntime CUDA, CUDA graph", True)):
            ways[name] = found if isinstance(found, Skipped) else partial(open_onnxruntime_cuda, graph.path, captured)
    if backend in FLAVORS:
        flavor = probe_flavor_here(backend)
        variants = [("", False, False), (", CUDA graph", True, False)]
        if backend == "tensorrt":
            variants.append((", CUDA graph, EfficientNMS", True, True))
        for suffix, captured, suppresses in variants:
            ways[backend + suffix] = (
                flavor
                if isinstance(flavor, Skipped)
                else partial(open_tensorrt, flavor[0], graph, backend, batch, captured, suppresses)
            )
    return ways


def _compare_ways(task: Task, backend: str, subject: Subject, graph: Graph, pictures: np.ndarray) -> None:
    """Add the rows of one precision and batch: agreement with the CPU, medians in turns, and the time on the GPU."""
    reference = reference_outputs(graph, pictures, task.work)
    shared = {"precision": graph.precision, "batch": len(pictures)}
    open_ways: dict[str, Way] = {}
    checked: dict[str, dict[str, Any]] = {}
    for name, opener in _openers(backend, subject, graph, len(pictures)).items():
        if task.is_late:
            opener = Skipped(LATE)
        way = opener if isinstance(opener, Skipped) else attempt(opener)
        if not isinstance(way, Skipped):
            # Only the second call goes through a CUDA graph, so its result is the one that is checked.
            found = attempt(lambda way=way: (way.call(pictures), way.call(pictures))[1])
            if isinstance(found, Skipped):
                way.close()
                way = found
            else:
                agreement = compare_outputs(
                    suppress(reference, subject.spec.image_size) if way.suppresses else reference, found
                )
                enough = agreement.matched >= LEAST_MATCHED[graph.precision]
                checked[name] = {**asdict(agreement), "agrees": enough}
                open_ways[name] = way
        if isinstance(way, Skipped):
            task.add(way=name, **shared, skipped=way.reason)
    rows = measure_ways(open_ways, pictures)
    for row in rows:
        task.add(**shared, **row, **checked[row["way"]])
    for way in open_ways.values():
        way.close()


def measure_ways(ways: Mapping[str, Way], pictures: np.ndarray, rounds: int = ROUNDS) -> list[dict[str, Any]]:
    """Time ways in turns from end to end, and the median time of 20 runs on the GPU itself, one row a way."""
    if not ways:
        return []
    calls = {name: (lambda way=way: way.call(pictures)) for name, way in ways.items()}
    rows = summarize_times(time_ways(calls, rounds), {})
    for row in rows:
        way = ways[row.pop("way")]
        del row["milliseconds"]
        device: list[float] = []
        for _ in range(20):
            way.call(pictures)
            spent = way.device_ms()
            if spent is not None:
                device.append(spent)
        row["device_ms"] = float(np.median(device)) if device else None
    return [
        {"way": name, **row, "images_per_second": 1000 * len(pictures) / row["median_ms"]}
        for name, row in zip(ways, rows, strict=True)
    ]


def _compare_fusions(task: Task, subject: Subject, gpu: Mapping[str, Any]) -> None:
    """Time whole networks in TensorRT in turns: keep, dense, and the choice of ``auto`` where ``TARGETS`` has this kind of GPU."""
    flavor = probe_flavor_here("tensorrt")
    if isinstance(flavor, Skipped):
        return
    pictures = read_pictures(subject.spec, 1)
    capability = tuple(gpu["compute_capability"])
    target = next((name for name, row in TARGETS.items() if row.compute_capability == capability), None)
    ways: dict[str, Way] = {}
    for fusion, told in (("keep", None), ("dense", None), ("auto", target)):
        if fusion == "auto" and told is None:
            task.add(way="network, auto", skipped="no target of the cost model has this compute capability")
            continue
        way = attempt(
            lambda fusion=fusion, told=told: open_tensorrt(
                flavor[0], prepare_graph(subject, fusion, DENSE_PRECISION, task.work, told), "tensorrt", 1, True
            )
        )
        if isinstance(way, Skipped):
            task.add(way=f"network, {fusion}", skipped=way.reason)
        else:
            ways[f"network, {fusion}"] = way
    for row in measure_ways(ways, pictures):
        task.add(precision=DENSE_PRECISION, batch=1, **row)
    for way in ways.values():
        way.close()


def main(argv: Sequence[str] | None = None) -> int:
    """Run one part and write its rows, or the reason why there are none, to the file that the task names."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_check_parts")
    parser.add_argument(
        "task", help="a JSON object: part and seconds, and the fields of Task but for rows and deadline"
    )
    given = json.loads(parser.parse_args(argv).task)
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(message)s")
    part, seconds = given.pop("part"), given.pop("seconds")
    paths = {name: Path(given.pop(name)) for name in ("work", "output")}
    task = Task(**paths, **given, deadline=time.monotonic() + END_SHARE * seconds)
    skipped = attempt(lambda: PARTS[part](task))
    if isinstance(skipped, Skipped):
        write_json(task.output, {"rows": task.rows, "skipped": skipped.reason})
    return 0


if __name__ == "__main__":
    sys.exit(main())
