"""A benchmark's report as it may be: four engines that were measured and one that was not, with names that want to be escaped."""

from __future__ import annotations

import base64
import dataclasses
import io

import numpy as np
from PIL import Image, ImageDraw

from edge_effdet.artifacts.record import Calibration, Fingerprint, Verdict
from edge_effdet.benchmarking.record import (
    Advice,
    Change,
    Comparison,
    Cpu,
    Difference,
    Estimate,
    Evidence,
    Found,
    GpuDescription,
    Images,
    Jetson,
    LayerTime,
    Limits,
    Machine,
    Peaks,
    Precision,
    Probe,
    Profile,
    Quality,
    Reading,
    Referee,
    Report,
    Row,
    Scenario,
    Settings,
    Stage,
    Sustained,
    Window,
)

SCRIPT = "<script>alert(1)</script>"
RED = "\x1b[31mred"
PIPED = "Größe | a"
LONG = "a class with a name that goes on and on, far beyond what a column of a table or an axis of a chart has room for"
CLASSES = (SCRIPT, RED, PIPED, LONG, "$x_1$", "`code` *star* _line_", *(f"cell {number}" for number in range(20)))

FP32, OPENVINO, FP16, INT8, SKIPPED = (
    "fp32 onnxruntime",
    "fp32 openvino",
    "fp16 onnxruntime",
    "int8 openvino",
    "int8 tensorrt",
)

_SPEEDS = {FP32: 21.6, OPENVINO: 18.9, FP16: 24.3, INT8: 11.3}
_AP = {FP32: 0.445, OPENVINO: 0.445, FP16: 0.4448, INT8: 0.4417}


def full_report() -> Report:
    """All sections, with four engines, a skipped one, a sustained run of two of them, marks, a baseline and two pictures."""
    rows = (*(_row(name) for name in _SPEEDS), skipped_row())
    return Report(
        created_at="2026-11-28T16:43:12+00:00",
        advice=Advice(
            pick=INT8,
            sentences=(
                "INT8 on OpenVINO is 1.9 times as fast as FP32 on onnxruntime and loses 0.33 AP, inside the noise; take it.",
                "It holds 71 images a second within 100 ms on this machine.",
            ),
        ),
        settings=settings(),
        images=Images(
            kind="labelled",
            count=72,
            name="bccd",
            split="test",
            sha256="9" * 64,
            median_size=(480, 640),
            class_names=CLASSES,
        ),
        machine=machine(),
        rows=rows,
        comparison=_comparison(),
        notes=("The network alone was timed with the same threads as the whole way.", f"A class is called {SCRIPT}."),
        differences=(
            _difference("BloodImage_00134.jpg", 0.31, f"{INT8} misses 2 {SCRIPT} that {FP32} finds."),
            _difference("BloodImage_00007.jpg", 0.12, f"{INT8} finds a {RED} that {FP32} does not find."),
        ),
    )


def bare_report(*rows: Row) -> Report:
    """Nothing that may be missing is there."""
    return Report(
        created_at="2026-11-28T16:43:12+00:00",
        advice=Advice(pick=None, sentences=("No engine could be measured.",)),
        settings=settings(),
        images=Images(kind="golden", count=4),
        machine=Machine(
            host="box",
            system="Linux",
            kernel="6.1",
            python="3.11.7",
            packages={},
            cpu=Cpu(name="a processor", architecture="x86_64", cores=2, threads=2, instructions=()),
            memory_bytes=8_000_000_000,
        ),
        rows=rows,
    )


def skipped_row() -> Row:
    """An engine that cannot run here."""
    return Row(
        name=SKIPPED,
        path="engines/bccd.int8.plan",
        engine_sha256="5" * 64,
        engine_bytes=4_100_000,
        model="tf_efficientdet_lite0",
        image_size=(320, 320),
        backend="tensorrt",
        backend_version="",
        precision="int8",
        skipped="tensorrt is not installed; it runs on a machine with an NVIDIA GPU.",
    )


def bare_row(name: str = "fp32") -> Row:
    """An engine of which nothing was measured but one image at a time."""
    return Row(
        name=name,
        path="engines/a.onnx",
        engine_sha256="1" * 64,
        engine_bytes=13_500_000,
        model="tf_efficientdet_lite0",
        image_size=(320, 320),
        backend="onnxruntime",
        backend_version="1.23.0",
        precision="fp32",
        scenarios=(
            Scenario(
                name="SingleStream",
                driven_by="own loop",
                queries=100,
                images=100,
                seconds=2.0,
                enough="It is enough for P90.",
            ),
        ),
    )


def many_classes(report: Report, number: int) -> Report:
    """The same report with so many classes."""
    names = [f"class {index}" for index in range(number)]
    rng = np.random.default_rng(0)
    rows = []
    for row in report.rows:
        if row.quality:
            per_class = {name: float(rng.uniform(0.2, 0.6)) for name in names}
            quality = dataclasses.replace(row.quality, per_class=per_class, boxes_per_class=dict.fromkeys(names, 9))
            rows.append(dataclasses.replace(row, quality=quality))
    return dataclasses.replace(report, rows=tuple(rows))


def settings() -> Settings:
    return Settings(
        mode="full",
        rounds=5,
        score_threshold=0.3,
        quality_threshold=0.001,
        bound_ms=100.0,
        driver="LoadGen 6.0.17",
        threads=0,
        command=(
            "python -m edge_effdet.benchmark --engine engines/bccd.fp32.onnx --engine engines/bccd.int8.onnx \\\n"
            "    --data bccd --mode full --sustain 30m --baseline 'old & <older>.json' --output report"
        ),
        version="0.1.0",
    )


def machine() -> Machine:
    """A small computer with all that can be known of it, and a Jetson's facts beside."""
    return Machine(
        host="bench-7",
        system="Debian GNU/Linux 12",
        kernel="6.1.0-28-amd64",
        python="3.11.7",
        packages={"onnxruntime": "1.23.0", "openvino": "2026.3.0", "numpy": "2.3.1", "mlcommons-loadgen": "6.0.17"},
        cpu=Cpu(
            name="AMD EPYC 7B13",
            architecture="x86_64",
            cores=2,
            threads=4,
            instructions=("avx2", "f16c", "fma"),
            governors=("performance",),
            max_mhz=3500.0,
            turbo=True,
            hypervisor=True,
        ),
        memory_bytes=8_200_000_000,
        gpus=(GpuDescription(name="Orin", driver="540.4.0", cuda="12.6", memory_bytes=None, compute_capability="8.7"),),
        jetson=Jetson(
            model="NVIDIA Jetson Orin Nano", l4t="36.4.3", jetpack="6.2", power_mode="MAXN", clocks_locked=None
        ),
        limits=Limits(cpus=2.0, memory_bytes=4_000_000_000, throttled_share=0.02),
        load_before=0.31,
        peaks=Peaks(
            fp32_gflops=118.0,
            int8_gops=212.0,
            bandwidth_gb_s=17.4,
            threads=2,
            how="matrix products of 1024 x 1024 and copies of 256 MB",
        ),
    )


def _estimate(value: float, spread: float = 0.02) -> Estimate:
    return Estimate(value, value * (1 - spread), value * (1 + spread))


def _scenarios(ms: float, seed: int) -> tuple[Scenario, ...]:
    rng = np.random.default_rng(seed)
    times = ms * rng.lognormal(0, 0.05, 2000) + ms * 0.3 * (rng.random(2000) > 0.97)
    quantiles = tuple(float(value) for value in np.quantile(times, np.linspace(0, 1, 101)))
    p50, p90, p99 = (float(np.quantile(times, share)) for share in (0.5, 0.9, 0.99))
    reading = Reading(cpu_mhz=3180.0, cpu_c=None, others=0.01, stolen=0.002, throttled="")
    rate = 1000 / ms
    return (
        Scenario(
            name="SingleStream",
            driven_by="LoadGen 6.0.17",
            queries=2000,
            images=2000,
            seconds=2 * ms,
            enough="LoadGen wants 662 queries for P99 with a confidence of 99 %, and 2,000 were answered.",
            p50_ms=_estimate(p50),
            p90_ms=_estimate(p90),
            p99_ms=_estimate(p99, 0.06),
            rate=_estimate(rate),
            quantiles_ms=quantiles,
            round_p50_ms=(p50,) * 5,
            referee=Referee(result="VALID", figures={"90th percentile latency (ns)": p90 * 1e6}),
            reading=reading,
        ),
        Scenario(
            name="MultiStream",
            driven_by="LoadGen 6.0.17",
            queries=270,
            images=2160,
            seconds=40.0,
            enough="LoadGen wants 662 queries for P99, and 270 were answered: P99 is not known.",
            p50_ms=_estimate(7.1 * ms),
            p90_ms=_estimate(7.6 * ms),
            rate=_estimate(rate * 1.1),
            quantiles_ms=tuple(7.1 * value for value in quantiles),
            referee=Referee(result="INVALID", figures={}),
            reading=reading,
        ),
        Scenario(
            name="Offline",
            driven_by="LoadGen 6.0.17",
            queries=1,
            images=2000,
            seconds=30.0,
            enough="All images are one query; the interval is the spread between the rounds.",
            rate=_estimate(rate * 1.2),
            reading=reading,
        ),
        Scenario(
            name="Server",
            driven_by="LoadGen 6.0.17",
            queries=4000,
            images=4000,
            seconds=60.0,
            enough="Each rate was held for 10 seconds at least.",
            p99_ms=_estimate(88.0),
            rate=_estimate(rate * 0.8),
            bound_ms=100.0,
            probes=(
                Probe(rate=rate * 0.8, queries=900, p99_ms=88.0, held=True),
                Probe(rate=rate * 0.9, queries=980, p99_ms=143.0, held=False),
            ),
            reading=reading,
        ),
    )


def _stages(ms: float) -> tuple[Stage, ...]:
    times = {
        "decode": 2.1,
        "letterbox": 0.9,
        "copy in": 0.12,
        "network": ms - 3.7,
        "copy out": 0.05,
        "suppression": 0.53,
    }
    return tuple(Stage(name=name, median_ms=own, p90_ms=1.1 * own, share=own / ms) for name, own in times.items())


def _profile(ms: float, precision: str) -> Profile:
    rng = np.random.default_rng(3)
    layers = []
    weights = rng.lognormal(0, 1, 30)
    for index, weight in enumerate(weights / weights.sum()):
        intensity = float(rng.uniform(4, 12) if index % 2 else rng.uniform(20, 120))
        roof = min({"int8": 212.0}.get(precision, 118.0), intensity * 17.4)
        macs = int(roof * rng.uniform(0.2, 0.9) * weight * ms * 1e6 / 2)
        layers.append(
            LayerTime(
                name=f"/backbone/blocks.{index}.0/conv_{'dw' if index % 2 else 'pwl'}/Conv{'_a_long_suffix_of_the_compiler' * (index == 4)}",
                kind="Convolution",
                precision=precision if index else "fp32",
                median_ms=float(weight * ms),
                nodes=(f"conv{index}",),
                macs=macs if index % 7 else 0,
                bytes=int(2 * macs / intensity) if index % 7 else 0,
            )
        )
    return Profile(
        source=f"the profiler of {precision}", layers=tuple(layers), sum_ms=1.04 * ms, network_ms=ms, macs_matched=0.987
    )


def _quality(name: str, sha256: str) -> Quality:
    rng = np.random.default_rng(len(name))
    ap = _AP[name]
    recall = np.linspace(0, 1, 101)
    curves = tuple(
        Precision(
            iou=iou,
            precision=tuple(float(max(0.0, value)) for value in np.minimum(1, (1 - recall ** (end + ap)) * 1.02)),
        )
        for iou, end in ((0.5, 3.0), (0.75, 1.5))
    )
    compared = (
        {}
        if name == FP32
        else {
            "reference": FP32,
            "drop": 100 * (_AP[FP32] - ap),
            "drop_interval": (100 * (_AP[FP32] - ap) - 0.98, 100 * (_AP[FP32] - ap) + 0.94),
        }
    )
    return Quality(
        AP=ap,
        AP50=ap + 0.3,
        AP75=ap + 0.05,
        AP_small=None,
        AP_medium=ap - 0.06,
        AP_large=ap + 0.04,
        per_class={each: float(ap + 0.02 * position % 0.3 - rng.uniform(0, 0.03)) for position, each in enumerate(CLASSES)},
        boxes_per_class={each: 7 + 3 * position for position, each in enumerate(CLASSES)},
        images=72,
        score_floor=0.001,
        engine_sha256=sha256,
        curves=curves,
        **compared,
    )  # fmt: skip


def _sustained(ms: float, sensors: bool) -> Sustained:
    rng = np.random.default_rng(11)
    windows = []
    for index in range(60):
        hot = 0.22 / (1 + np.exp(-(index - 30) / 5)) if sensors else 0.0
        busy = not sensors and 20 <= index < 24
        p50 = ms * (1 + hot + 0.01 * rng.standard_normal() + 0.12 * busy)
        reading = Reading(
            cpu_mhz=3500 - 2800 * hot,
            cpu_c=48 + 190 * hot if sensors else None,
            power_w=14.1 - 9 * hot if sensors else None,
            power_of="module" if sensors else None,
            throttled=("heat" if index > 30 else "") if sensors else None,
            others=0.2 if busy else 0.01,
        )
        windows.append(
            Window(
                start_s=30.0 * index,
                seconds=30.0,
                images=int(30000 / p50),
                p50_ms=p50,
                p90_ms=1.09 * p50,
                rate=1000 / p50,
                reading=reading,
            )
        )
    drift = 100 * (windows[-1].p50_ms / windows[0].p50_ms - 1)
    return Sustained(
        seconds=1800.0,
        images=sum(window.images for window in windows),
        windows=tuple(windows),
        first=windows[0].p50_ms,
        last=windows[-1].p50_ms,
        drift_percent=Estimate(drift, drift - 1.2, drift + 1.1),
        energy_j=0.142 if sensors else None,
        energy_of="the input of the module" if sensors else None,
        text=f"After 30 minutes an image takes {drift:.1f} % longer than at the start.",
    )


def _evidence(precision: str, sha256: str) -> Evidence:
    quantized = precision == "int8"
    kept = tuple(f"/class_net/predict_{index}/Conv" for index in range(18)) if quantized else ()
    return Evidence(
        proof_source="OpenVINO's compiled model" if quantized else "the graph",
        int8_mac_fraction=0.991 if quantized else 0.0,
        fp16_mac_fraction=1.0 if precision == "fp16" else 0.0,
        bf16_mac_fraction=0.0,
        fp32_mac_fraction=0.009 if quantized else float(precision == "fp32"),
        layers_kept_high_precision=kept,
        layers_below_graph=(),
        final_convolutions={"/class_net/predict/Conv": "fp32", "/box_net/predict/Conv": "fp32"},
        calibration=Calibration(
            method="entropy",
            images=128,
            split="train",
            choice="k-center",
            seed=0,
            manifest_sha256="ab" * 32,
            manifest={f"image{number}": "cd" * 32 for number in range(128)},
        )
        if quantized
        else None,
        gate=Verdict(
            passed=True,
            decided_by="interval",
            max_ap_drop=1.0,
            budget_was="default",
            text="0.33 points are lost, within 1.0",
        ),
        built_accuracy="AP 44.2, 0.33 points lost, on 72 images of test." if quantized else "",
        golden="The engine finds in 4 pictures what it found where it was proven.",
        built_on=Fingerprint("openvino", "2026.3.0", "x86", ("avx2", "fma")) if quantized else None,
        chain={"engine": sha256, "compiled_graph": "2" * 64, "graph": "3" * 64, "checkpoint": "4" * 64},
        built_at="2026-11-27T09:12:00+00:00",
    )


def _row(name: str) -> Row:
    ms, (precision, backend) = _SPEEDS[name], name.split()
    number = list(_SPEEDS).index(name)
    sha256 = f"{number + 10:x}" * 64
    marks = {
        FP16: ("Other processes took 12 % of the processors in 2 of 5 rounds.",),
        INT8: (
            "The clock was held down for heat in the second half of the sustained run.",
            f"A picture with a {SCRIPT} could not be decoded.",
        ),
    }
    return Row(
        name=name,
        path=f"engines/bccd.{precision}.onnx",
        engine_sha256=sha256,
        engine_bytes={"fp32": 13_500_000, "fp16": 6_900_000, "int8": 4_200_000}[precision],
        model="tf_efficientdet_lite0",
        image_size=(320, 320),
        backend=backend,
        backend_version="1.23.0" if backend == "onnxruntime" else "2026.3.0",
        precision=precision,
        arithmetic="f32" if precision == "int8" else None,
        threads=2,
        batch=1,
        marks=marks.get(name, ()),
        scenarios=_scenarios(ms, number),
        network=_estimate(ms - 3.7),
        network_round_ms=(ms - 3.7,) * 5,
        stages=_stages(ms),
        profile=_profile(ms - 3.7, precision) if name in (FP32, INT8) else None,
        quality=_quality(name, sha256),
        sustained=_sustained(ms, sensors=name == INT8) if name in (FP32, INT8) else None,
        evidence=_evidence(precision, sha256),
    )


def _comparison() -> Comparison:
    def change(figure: str, before: float, now: float, spread: float, regression: bool = False) -> Change:
        worse = before - now if figure.startswith("AP") else 100 * (now / before - 1)
        if figure.startswith("images/s"):
            worse = 100 * (before / now - 1)
        significant = abs(worse) > spread
        return Change(
            row=INT8,
            baseline_row="int8 openvino, old",
            figure=figure,
            before=before,
            now=now,
            percent=Estimate(worse, worse - spread, worse + spread),
            paired=False,
            significant=significant,
            regression=regression,
            text=f"{figure} of {INT8} went from {before} to {now}.",
        )

    return Comparison(
        baseline="old & <older>.json of 2026-10-02",
        same_machine=True,
        max_slowdown_percent=5.0,
        max_ap_drop=1.0,
        changes=(
            change("time of an image (median)", 11.2, 11.3, 2.0),
            change("AP (points)", 44.0, 44.17, 0.9),
            change("time of the network (median)", 9.9, 9.0, 1.4),
            change("images/s, all at once", 106.0, 88.3, 3.1, regression=True),
        ),
        missing=("fp32 onnxruntime has no counterpart in the baseline.",),
    )


def _difference(name: str, distance: float, text: str) -> Difference:
    picture = Image.new("RGB", (480, 180), (214, 196, 202))
    brush = ImageDraw.Draw(picture)
    rng = np.random.default_rng(len(text))
    for side in (0, 240):
        for number in range(7):
            x, y = int(rng.integers(5, 190)) + side, int(rng.integers(5, 130))
            brush.ellipse((x, y, x + 38, y + 38), fill=(190, 96, 110))
            if number or not side:
                brush.rectangle((x - 2, y - 2, x + 40, y + 40), outline=(20, 90, 200), width=2)
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=80)
    found = tuple(
        Found(row=row, boxes=((1.0, 2.0, 30.0, 40.0),), scores=(score,), class_ids=(0,))
        for row, score in ((FP32, 0.81), (INT8, 0.42))
    )
    return Difference(
        image=name, distance=distance, text=text, jpeg=base64.b64encode(file.getvalue()).decode(), found=found
    )
