"""The report of a benchmark: what stands in ``report.json``. ``docs/benchmark-report.schema.json`` is the JSON Schema of it.

A figure that nobody measured is null and never a guess; where a reason is known, it stands beside it. Times are in milliseconds,
rates in images per second, and shares between 0 and 1, unless a field says otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from edge_effdet.artifacts.record import Calibration, Fingerprint, Verdict
from edge_effdet.errors import UsageError

REPORT_FORMAT = 1
"""The format of ``report.json`` that this version writes, and the only one that it reads."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure with its confidence interval of 95 %, from the spread between the rounds.

    Attributes:
        value: the figure.
        low: the lower end of the interval; equal to ``value`` where there was one round only.
        high: the upper end.
    """

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Cpu:
    """The processor.

    Attributes:
        name: its name, as the system gives it.
        architecture: ``x86_64``, ``aarch64`` or another.
        cores: the physical cores that this process may use.
        threads: the logical cores that this process may use.
        instructions: the instruction sets for which a runtime has kernels of its own, sorted.
        governors: the frequency governors of the cores; empty where the system does not tell.
        max_mhz: the highest clock that the system names; null where it names none.
        turbo: whether the clock may rise above the nominal one; null where the system does not tell.
        hypervisor: whether the processor is a virtual machine's share of one; null where the system does not tell.
    """

    name: str
    architecture: str
    cores: int
    threads: int
    instructions: tuple[str, ...]
    governors: tuple[str, ...] = ()
    max_mhz: float | None = None
    turbo: bool | None = None
    hypervisor: bool | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuDescription:
    """A GPU.

    Attributes:
        name: its name, as the driver gives it.
        driver: the driver's version.
        cuda: the CUDA version of the driver.
        memory_bytes: the size of its memory.
        compute_capability: such as ``8.7``.
        power_limit_w: the power that it may draw, in watts; null where the driver does not tell.
    """

    name: str
    driver: str | None = None
    cuda: str | None = None
    memory_bytes: int | None = None
    compute_capability: str | None = None
    power_limit_w: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Jetson:
    """What a Jetson tells of itself.

    Attributes:
        model: the module or kit, from the device tree.
        l4t: the release of Jetson Linux, such as ``36.4.3``.
        jetpack: the JetPack release that has this Jetson Linux; null where it is not known.
        power_mode: the mode of ``nvpmodel``, such as ``MAXN``; null where it could not be asked.
        clocks_locked: whether ``jetson_clocks`` holds the clocks at their highest; null where it could not be found out.
    """

    model: str
    l4t: str | None = None
    jetpack: str | None = None
    power_mode: str | None = None
    clocks_locked: bool | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a container or a service manager allows this process.

    Attributes:
        cpus: how many processors' time it may use; null for all.
        memory_bytes: how much memory it may use; null for all.
        throttled_share: the share of the scheduler's periods in which the limit stopped it, while it was measured; null where nobody counts.
    """

    cpus: float | None = None
    memory_bytes: int | None = None
    throttled_share: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Peaks:
    """What the machine reaches at best with as many threads as the engines had, measured beside them: the roof of the roofline.

    Attributes:
        fp32_gflops: billions of operations a second of a float32 matrix product; a multiply-accumulate is two operations.
        int8_gops: billions of operations a second of an INT8 matrix product; null where it could not be measured.
        bandwidth_gb_s: GB a second between memory and processor, read and written, on arrays larger than the caches.
        threads: with how many threads.
        how: what was measured, for people.
    """

    fp32_gflops: float
    int8_gops: float | None
    bandwidth_gb_s: float
    threads: int
    how: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """What was measured on.

    Attributes:
        host: the name of the machine.
        system: the operating system and its release.
        kernel: the kernel's release.
        python: Python's version.
        packages: the versions of the packages that decide how fast an engine is.
        cpu: the processor.
        memory_bytes: the size of the memory.
        gpus: the GPUs.
        gpu_note: why GPUs could not be asked for; empty where they were.
        jetson: what a Jetson tells of itself; null on another machine.
        limits: what a container allows.
        load_before: how many processes ran or waited over the last minute, when the benchmark started (the load average).
        peaks: what the machine reaches at best; null where it was not measured.
    """

    host: str
    system: str
    kernel: str
    python: str
    packages: Mapping[str, str]
    cpu: Cpu
    memory_bytes: int
    gpus: tuple[GpuDescription, ...] = ()
    gpu_note: str = ""
    jetson: Jetson | None = None
    limits: Limits = field(default_factory=Limits)
    load_before: float | None = None
    peaks: Peaks | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What the sensors showed over one stretch of time: medians over its samples, unless a field says otherwise. Null is not measured.

    Attributes:
        cpu_mhz: the clock of the processor, over the cores that this process may use.
        cpu_c: the highest temperature of the processor, in degrees Celsius.
        gpu_mhz: the clock of the first GPU.
        gpu_c: the highest temperature of the first GPU, in degrees Celsius.
        power_w: the power that is drawn, in watts.
        power_of: what draws this power: ``GPU``, ``processor package``, ``module`` (a Jetson's input), for people.
        throttled: whether a clock was held down for heat or power at any time, and by what, for people; empty where it was not, null
            where nothing tells.
        others: the share of the processors that this process may use which other processes took.
        stolen: the share of the time that the hypervisor gave to other machines.
        limited: the share of the scheduler's periods in which the limit of a container or a service manager stopped this process.
    """

    cpu_mhz: float | None = None
    cpu_c: float | None = None
    gpu_mhz: float | None = None
    gpu_c: float | None = None
    power_w: float | None = None
    power_of: str | None = None
    throttled: str | None = None
    others: float | None = None
    stolen: float | None = None
    limited: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Referee:
    """What LoadGen itself says of its last run of a scenario.

    Attributes:
        result: valid or invalid in LoadGen's spelling, by LoadGen's rules for the settings of that run.
        figures: LoadGen's own figures of that run, by the names of its summary.
    """

    result: str
    figures: Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """One rate that was tried in the scenario Server.

    Attributes:
        rate: images a second that arrived, at random times (a Poisson process).
        queries: how many arrived.
        p99_ms: the time that 99 of 100 of them took at most, waiting included.
        held: whether that is within the bound.
    """

    rate: float
    queries: int
    p99_ms: float
    held: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """An engine under one kind of load, from JPEG bytes to boxes.

    Attributes:
        name: ``SingleStream`` (one image after the other), ``MultiStream`` (eight at a time), ``Offline`` (all at once) or ``Server``
            (at random times).
        driven_by: ``LoadGen`` with its version, or ``own loop``.
        queries: how many queries were answered and counted.
        images: how many images these were.
        seconds: how long that took.
        enough: why there were so many queries, and for which percentiles that is enough.
        p50_ms: the median time of a query; null for Offline.
        p90_ms: the time that nine of ten queries keep to; null for Offline.
        p99_ms: the time that 99 of 100 queries keep to; null for Offline, and where the queries were too few to know it.
        rate: images a second. For Server the largest arrival rate that held the bound; null where none did.
        round_p50_ms: the median time of each round.
        round_rate: images a second of each round.
        quantiles_ms: the time of a query at the 101 quantiles 0, 0.01, …, 1; empty for Offline.
        bound_ms: the bound on the 99th percentile, for Server.
        probes: the rates that were tried, for Server.
        referee: what LoadGen says; null where our own loop drove.
        reading: what the sensors showed meanwhile.
    """

    name: str
    driven_by: str
    queries: int
    images: int
    seconds: float
    enough: str
    p50_ms: Estimate | None = None
    p90_ms: Estimate | None = None
    p99_ms: Estimate | None = None
    rate: Estimate | None = None
    round_p50_ms: tuple[float, ...] = ()
    round_rate: tuple[float, ...] = ()
    quantiles_ms: tuple[float, ...] = ()
    bound_ms: float | None = None
    probes: tuple[Probe, ...] = ()
    referee: Referee | None = None
    reading: Reading | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """One stage of the way from JPEG bytes to boxes.

    Attributes:
        name: ``decode``, ``letterbox``, ``copy in``, ``network``, ``copy out`` or ``suppression``.
        median_ms: its median time.
        p90_ms: the time that nine of ten runs keep to.
        share: its share of the whole.
    """

    name: str
    median_ms: float
    p90_ms: float
    share: float


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerTime:
    """One layer of the engine, as its backend runs it.

    Attributes:
        name: the backend's name of it.
        kind: the kind of layer, in the backend's words.
        precision: ``int8``, ``fp16``, ``bf16``, ``fp32``, or empty where the backend does not tell.
        median_ms: its median time.
        nodes: the names of the graph's convolutions that it computes.
        macs: the multiply-accumulates of these convolutions for one run; 0 for another kind of layer.
        bytes: the bytes that these convolutions read and write at least: inputs, weights and outputs once each; 0 where it is unknown.
    """

    name: str
    kind: str
    precision: str
    median_ms: float
    nodes: tuple[str, ...] = ()
    macs: int = 0
    bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """Where the network's time goes, by the backend's own profiler, which slows the run down a little.

    Attributes:
        source: what measured it, for people.
        layers: the layers, in the order in which they run.
        sum_ms: the sum of their times.
        network_ms: the time of a run without the profiler.
        macs_matched: the share of the graph's multiply-accumulates that belong to a layer that was found.
    """

    source: str
    layers: tuple[LayerTime, ...]
    sum_ms: float
    network_ms: float
    macs_matched: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Precision:
    """A curve of precision over recall.

    Attributes:
        iou: the overlap at which a detection counts as right.
        precision: the precision at the 101 recalls 0, 0.01, …, 1, averaged over the classes.
    """

    iou: float
    precision: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Quality:
    """COCO's numbers of the very file that was timed, 0 to 1; null where the data has no box of that kind.

    Attributes:
        AP: mean AP over the overlaps 0.50 to 0.95.
        AP50, AP75: AP at one overlap.
        AP_small, AP_medium, AP_large: boxes below 32 x 32 pixels of the original, up to 96 x 96, and above.
        per_class: AP by class name, for the classes that have boxes.
        boxes_per_class: how many boxes count, by class name.
        images: how many images were looked at.
        score_floor: detections with a lower score were dropped; far below the threshold of the timed runs, as AP needs.
        engine_sha256: the hash of the file that found them.
        curves: precision over recall.
        reference: the name of the row that this one is compared with; null for that row itself.
        drop: points of AP lost against that row, 100 times the difference; negative for a gain.
        drop_interval: the points lost with a confidence of 95 %, by a bootstrap over the images.
    """

    AP: float
    AP50: float
    AP75: float
    AP_small: float | None
    AP_medium: float | None
    AP_large: float | None
    per_class: Mapping[str, float]
    boxes_per_class: Mapping[str, int]
    images: int
    score_floor: float
    engine_sha256: str
    curves: tuple[Precision, ...] = ()
    reference: str | None = None
    drop: float | None = None
    drop_interval: tuple[float, float] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """A stretch of a sustained run.

    Attributes:
        start_s: when it began, in seconds from the start of the run.
        seconds: how long it was.
        images: how many images were finished in it.
        p50_ms: the median time of an image.
        p90_ms: the time that nine of ten images keep to.
        rate: images a second.
        reading: what the sensors showed.
    """

    start_s: float
    seconds: float
    images: int
    p50_ms: float
    p90_ms: float
    rate: float
    reading: Reading


@dataclass(frozen=True, slots=True, kw_only=True)
class Sustained:
    """A long run of one image after the other: whether the machine keeps its speed.

    Attributes:
        seconds: how long it was.
        images: how many images were finished.
        windows: what was seen, stretch by stretch.
        first: the median time over the first minute, or over the first tenth of a shorter run.
        last: the median time over the last minute, or over the last tenth of a shorter run.
        drift_percent: how much longer an image takes at the end than at the start, in per cent; negative for shorter.
        energy_j: the energy of one image in joules; null where no power was measured.
        energy_of: what that energy is counted on, for people; null where no power was measured.
        text: what came out, as a sentence.
    """

    seconds: float
    images: int
    windows: tuple[Window, ...]
    first: float
    last: float
    drift_percent: Estimate
    energy_j: float | None = None
    energy_of: str | None = None
    text: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """What the engine's own record says, and what was checked here.

    Attributes:
        proof_source: what counted the precisions, for people.
        int8_mac_fraction, fp16_mac_fraction, bf16_mac_fraction, fp32_mac_fraction: the share of the convolutions' work in each precision.
        layers_kept_high_precision: convolutions that are not INT8 in the graph.
        layers_below_graph: convolutions that are INT8 in the graph and not in the engine.
        final_convolutions: the final class and box convolutions and the precision of each.
        calibration: the calibration images by their hashes; null where nothing was quantized.
        gate: the accuracy gate's verdict when the engine was built.
        built_accuracy: AP and points lost as they were measured when the engine was built, as a sentence; empty where they were not.
        golden: what the golden check says here, as a sentence.
        built_on: the machine that proved it.
        chain: SHA-256 of the engine and of what it was made from, by kind: ``engine``, ``compiled_graph``, ``graph``, ``checkpoint``.
        built_at: when it was built.
    """

    proof_source: str
    int8_mac_fraction: float
    fp16_mac_fraction: float
    bf16_mac_fraction: float
    fp32_mac_fraction: float
    layers_kept_high_precision: tuple[str, ...]
    layers_below_graph: tuple[str, ...]
    final_convolutions: Mapping[str, str]
    calibration: Calibration | None
    gate: Verdict | None
    built_accuracy: str
    golden: str
    built_on: Fingerprint | None
    chain: Mapping[str, str]
    built_at: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One engine.

    Attributes:
        name: its name in this report, which no other row has.
        path: the file, as it was given.
        engine_sha256: the hash of the file that was timed and judged.
        engine_bytes: its size.
        model: the architecture.
        image_size: height and width of the input.
        backend: what runs it.
        backend_version: the version of the backend's runtime here.
        precision: ``fp32``, ``fp16`` or ``int8``.
        arithmetic: the type of what is not INT8, where the processor decides it; null where the graph does.
        threads: threads of a run on a CPU; 0 on a GPU.
        batch: images that one run takes.
        skipped: why it was not measured, or not to the end; null where all is there.
        marks: what makes its figures less certain, a sentence each: a busy machine, a throttled clock.
        scenarios: the kinds of load.
        network: the network alone, without decoding, letterbox and suppression, in milliseconds.
        network_round_ms: the network's median of each round.
        stages: where the time of one image goes.
        profile: where the network's time goes; null where the backend does not tell.
        quality: AP, where labelled images were given.
        sustained: the long run, where it was asked for.
        evidence: what the engine's record says.
    """

    name: str
    path: str
    engine_sha256: str
    engine_bytes: int
    model: str
    image_size: tuple[int, int]
    backend: str
    backend_version: str
    precision: str
    arithmetic: str | None = None
    threads: int = 0
    batch: int = 1
    skipped: str | None = None
    marks: tuple[str, ...] = ()
    scenarios: tuple[Scenario, ...] = ()
    network: Estimate | None = None
    network_round_ms: tuple[float, ...] = ()
    stages: tuple[Stage, ...] = ()
    profile: Profile | None = None
    quality: Quality | None = None
    sustained: Sustained | None = None
    evidence: Evidence | None = None

    def scenario(self, name: str) -> Scenario | None:
        """The scenario of this name; None where it was not measured."""
        return next((each for each in self.scenarios if each.name == name), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What one engine found in a picture.

    Attributes:
        row: the name of its row.
        boxes: x_min, y_min, x_max and y_max of each detection, in pixels of the picture.
        scores: the score of each, 0 to 1.
        class_ids: the class of each, 0-based into the class names.
    """

    row: str
    boxes: tuple[tuple[float, float, float, float], ...]
    scores: tuple[float, ...]
    class_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """A picture in which two engines differ.

    Attributes:
        image: the name of the picture.
        distance: how far the two lie apart, as a share of the scores, 0 to 1.
        text: in what they differ, for people.
        jpeg: the picture with the boxes of both side by side, a JPEG file in base64.
        found: what each of the two found, above the threshold of the timed runs.
    """

    image: str
    distance: float
    text: str
    jpeg: str
    found: tuple[Found, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Images:
    """The pictures.

    Attributes:
        kind: ``labelled`` (the user's), ``golden`` (those that travel with the engine) or ``drawn``.
        count: how many different pictures the timed runs went through.
        name: the data set, for people; empty where there is none.
        split: its split; empty where there is none.
        sha256: the hash over the labelled images and their boxes; empty where there are none.
        median_size: median height and width of the pictures that were timed.
        class_names: the classes of the labelled images.
    """

    kind: str
    count: int
    name: str = ""
    split: str = ""
    sha256: str = ""
    median_size: tuple[int, int] = (0, 0)
    class_names: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How it was measured.

    Attributes:
        mode: ``quick`` or ``full``.
        rounds: how many turns each engine had.
        score_threshold: the threshold of the timed runs, as deployed.
        quality_threshold: the threshold of the runs for AP.
        bound_ms: the bound on the 99th percentile in the scenario Server.
        driver: what drove the load: LoadGen with its version, or our own loop and why.
        threads: threads of a run on a CPU, 0 for what suits.
        command: the command that repeats this.
        version: the version of edge-effdet.
    """

    mode: str
    rounds: int
    score_threshold: float
    quality_threshold: float
    bound_ms: float
    driver: str
    threads: int
    command: str
    version: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Advice:
    """The verdict that people decide by.

    Attributes:
        pick: the name of the row to take; null where none can be taken.
        sentences: the verdict, in two sentences or three.
    """

    pick: str | None
    sentences: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One figure of one engine against the baseline.

    Attributes:
        row: the name of the row.
        baseline_row: the name of the baseline's row that it is compared with.
        figure: which figure, for people.
        before: the baseline's value.
        now: the present value.
        percent: how much more time it takes, or how much fewer images, in per cent, with its interval; points for AP. Above 0 is worse.
        paired: whether both engines ran in turns here, or the baseline's figures come from its file.
        significant: whether the interval excludes 0.
        regression: whether it is significant, and worse than the bound.
        text: the same as a sentence.
    """

    row: str
    baseline_row: str
    figure: str
    before: float
    now: float
    percent: Estimate
    paired: bool
    significant: bool
    regression: bool
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """What changed against a baseline.

    Attributes:
        baseline: the file's name, and when it was measured.
        same_machine: whether it was measured on this kind of machine.
        max_slowdown_percent: the bound on time and rate.
        max_ap_drop: the bound on AP, in points.
        changes: figure by figure.
        missing: rows of the baseline that have no counterpart here, and the other way round, a sentence each.
    """

    baseline: str
    same_machine: bool
    max_slowdown_percent: float
    max_ap_drop: float
    changes: tuple[Change, ...]
    missing: tuple[str, ...] = ()

    @property
    def regressions(self) -> tuple[Change, ...]:
        """The changes that are regressions."""
        return tuple(change for change in self.changes if change.regression)


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """All that a benchmark has found out. It is written once, as JSON, Markdown and HTML.

    Attributes:
        format: the format of this report, ``REPORT_FORMAT``.
        created_at: when it was finished, ISO 8601 in UTC.
        advice: the verdict.
        settings: how it was measured.
        images: on which pictures.
        machine: on which machine.
        rows: the engines, in the order in which they were given.
        comparison: what changed against a baseline; null where none was given.
        differences: the pictures in which two engines differ most, the worst first.
        notes: what a reader has to know, a sentence each.
    """

    format: int = REPORT_FORMAT
    created_at: str
    advice: Advice
    settings: Settings
    images: Images
    machine: Machine
    rows: tuple[Row, ...]
    comparison: Comparison | None = None
    notes: tuple[str, ...] = ()
    # Last, because the pictures are long and a person reads from the top.
    differences: tuple[Difference, ...] = ()

    def __post_init__(self) -> None:
        if self.format != REPORT_FORMAT:
            raise UsageError(f"`format` {self.format} is not the one that this version writes, {REPORT_FORMAT}.")
