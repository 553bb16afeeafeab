"""The sections of a report on how fast the engines are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from edge_effdet.benchmarking.host.sensors import Sensors
from edge_effdet.benchmarking.record import Reading, Report, Row, Scenario, Window
from edge_effdet.benchmarking.report.blocks import (
    DASH,
    Block,
    Bullets,
    Chart,
    Grid,
    Prose,
    Section,
    without_empty_columns,
)
from edge_effdet.benchmarking.report.figures import (
    between,
    counted,
    digits,
    duration,
    estimated,
    joined,
    lost,
    megabytes,
    percent,
    plain,
    points,
)

QUANTILES = (1, 10, 25, 50, 75, 90, 95, 99, 100)
"""The percentiles of the latency that are listed."""

REFEREED = (
    "LoadGen judges each round by itself. It calls those invalid that have fewer queries than a result that is submitted to MLPerf needs, and in "
    "Server those that miss the bound; its own figures of the last round are in report.json."
)

MOST_WINDOWS = 12
"""So many stretches of a sustained run are listed at most."""


def summary(report: Report) -> Section:
    """The table that people decide by: a line for each engine, with all that makes its figures less certain below it."""
    marks: list[str] = []
    rows = []
    for row in report.rows:
        own = [f"{row.name}: {mark}" for mark in row.marks]
        if row.skipped and measured(row):
            own.append(f"{row.name}: it was not measured to the end. {row.skipped}")
        numbers = ", ".join(str(len(marks) + number) for number in range(1, len(own) + 1)) or DASH
        marks += own
        single, quality = row.scenario("SingleStream"), row.quality
        start = (row.name, row.precision, row.backend)
        if row.skipped and not measured(row):
            rows.append((*start, f"Skipped: {row.skipped}"))
            continue
        rows.append(
            (
                *start,
                points(quality.AP) if quality else DASH,
                _lost(row, report.rows),
                *(estimated(single and getattr(single, field)) for field in ("p50_ms", "p90_ms", "p99_ms")),
                *(_rate(row, name) for name in ("Offline", "Server")),
                megabytes(row.engine_bytes),
                numbers,
            )
        )
    # Among one there is nothing to pick.
    compared = report.rows if len(report.rows) > 1 else ()
    picked = next((index for index, row in enumerate(compared) if row.name == report.advice.pick), None)
    grid = Grid(
        caption="The engines",
        head=(
            "Engine",
            "Precision",
            "Backend",
            "AP",
            "Points lost",
            "P50",
            "P90",
            "P99",
            "Offline",
            "Server",
            "Size",
            "Marks",
        ),
        rows=tuple(rows),
        numbers=frozenset(range(3, 12)),
        groups=(("", 3), ("Accuracy", 2), ("SingleStream, ms", 3), ("Images a second", 2), ("", 2)),
        across=frozenset(index for index, row in enumerate(report.rows) if row.skipped and not measured(row)),
        picked=picked,
        cards=True,
    )
    blocks: list[Block] = [without_empty_columns(grid)]
    if marks:
        blocks.append(Bullets(tuple(marks), numbered=True, title="Marks: what makes figures less certain"))
    return Section("summary", "Summary", (*blocks, Prose(_how_to_read(report), quiet=True)))


def measured(row: Row) -> bool:
    """Whether there is any figure of an engine."""
    return bool(row.scenarios or row.quality or row.network or row.stages or row.profile or row.sustained)


def _how_to_read(report: Report) -> str:
    parts = [
        "SingleStream is one image after the other, from the picture's file to boxes; of 100 images, 50, 90 and 99 keep to P50, P90 and P99.",
        "Offline is all images at once.",
        f"Server is the largest rate of arrivals at random times at which 99 of 100 images take at most {plain(report.settings.bound_ms)} ms; in "
        "brackets stand the rate up to which every try held it, and the next higher one at which none did.",
    ]
    if any(row.quality for row in report.rows):
        parts.append("AP is COCO's, in points, of the very file that was timed.")
    return " ".join(
        [*parts, "In the other brackets stands the interval of 95 %. A dash stands for what was not measured."]
    )


def _lost(row: Row, rows: Sequence[Row]) -> str:
    quality = row.quality
    if not quality:
        return DASH
    if quality.drop is None:
        return "reference" if any(other.quality and other.quality.reference == row.name for other in rows) else DASH
    return between(quality.drop, *(quality.drop_interval or (quality.drop, quality.drop)), lost)


def _rate(row: Row, name: str) -> str:
    scenario = row.scenario(name)
    if name == "Server" and scenario and scenario.rate is None:
        return "none held"
    return estimated(scenario and scenario.rate)


def latency_ms(row: Row) -> float | None:
    """The median time of an image from JPEG bytes to boxes, one image after the other."""
    single = row.scenario("SingleStream")
    return single.p50_ms.value if single and single.p50_ms else None


def front(rows: Sequence[Row]) -> list[Row]:
    """The Pareto front: the engines for which no other is at least as fast and as accurate, and better in one of both; the fastest first."""
    placed = [(latency_ms(row), row.quality.AP, row) for row in rows if row.quality]
    known = [(ms, ap, row) for ms, ap, row in placed if ms is not None]
    best = [
        (ms, ap, row)
        for ms, ap, row in known
        if not any(
            other_ms <= ms and other_ap >= ap and (other_ms, other_ap) != (ms, ap) for other_ms, other_ap, _ in known
        )
    ]
    return [row for _, _, row in sorted(best, key=lambda each: each[:2])]


def tradeoff(report: Report) -> Section:
    """AP against latency, with the Pareto front."""
    best = front(report.rows)
    blocks: tuple[Block, ...]
    if len(report.rows) == 1 and best:
        sentence = "One engine was measured, so there is nothing to weigh; give more engines, such as the FP32 one, to see which to take."
        blocks = (Prose(sentence),)
    elif best:
        names = joined(row.name for row in best)
        sentence = f"On the Pareto front {'is' if len(best) == 1 else 'are'} {names}: no other engine is both faster and more accurate."
        label = f"AP in points against the median latency in milliseconds, a marker for each engine. {sentence}"
        caption = "Up and to the left is better. Bars are intervals of 95 %: of the median latency, and of the AP against that of the reference."
        blocks = (Prose(sentence), Chart(kind="tradeoff", label=label, caption=caption, legend="rows"))
    else:
        blocks = (Prose(_no_tradeoff(report)),)
    return Section("tradeoff", "Accuracy against latency", blocks)


def _no_tradeoff(report: Report) -> str:
    if any(row.quality for row in report.rows):
        return "There is no picture of AP against latency: no engine has both."
    return f"There is no picture of AP against latency. {why_no_accuracy(report)}"


def why_no_accuracy(report: Report) -> str:
    """Why there is no AP at all, as a sentence."""
    if report.images.kind == "labelled":
        return "AP was not measured on any engine."
    return "AP was not measured: no labelled images were given."


def distributions(report: Report) -> Section:
    """How long queries take: the distribution, the percentiles and the rates of each kind of load."""
    blocks: list[Block] = []
    known = [row for row in report.rows if (single := row.scenario("SingleStream")) and single.quantiles_ms]
    if known:
        each = joined(f"{row.name} {digits(latency_ms(row))} ms" for row in known)
        blocks.append(
            Chart(
                kind="latency",
                label=f"The distribution of the latency of each engine. The medians: {each}.",
                caption="One image after the other. The thin line goes from the 1st to the 99th of 100 images, or to the 90th where there were too "
                "few to know the 99th, and the thick one covers the middle half of them; the marks are P50, P90 and P99.",
                figures=_quantiles(known),
            )
        )
    order = ("SingleStream", "MultiStream", "Offline", "Server")
    rows = [
        (
            scenario.name,
            row.name,
            estimated(scenario.p50_ms),
            estimated(scenario.p90_ms),
            estimated(scenario.p99_ms),
            estimated(scenario.rate),
            f"{scenario.queries:,}",
            scenario.driven_by,
        )
        for name in (*order, *sorted({each.name for row in report.rows for each in row.scenarios} - {*order}))
        for row in report.rows
        for scenario in row.scenarios
        if scenario.name == name
    ]
    if not rows:
        return Section("latency", "Latency and rate", (Prose("No engine was timed."),))
    head = (
        "Scenario",
        "Engine",
        "P50, ms",
        "P90, ms",
        "P99, ms",
        "Images a second",
        "Queries",
        "Driven by",
    )
    caption = "The time of a query and the rate, by scenario"
    drivers = {row[-1] for row in rows}
    if len(drivers) == 1:
        caption, head, rows = f"{caption}, driven by {rows[0][-1]}", head[:-1], [row[:-1] for row in rows]
    grid = Grid(caption=caption, head=head, rows=tuple(rows), numbers=frozenset(range(2, 7)))
    blocks.append(without_empty_columns(grid))
    refereed = [scenario for row in report.rows for scenario in row.scenarios if scenario.referee]
    if any(scenario.referee and scenario.referee.result != "VALID" for scenario in refereed):
        blocks.append(Prose(REFEREED, quiet=True))
    return Section("latency", "Latency and rate", tuple(blocks))


def _quantiles(rows: Sequence[Row]) -> Grid:
    singles = [(row.name, single) for row in rows if (single := row.scenario("SingleStream"))]

    def cell(single: Scenario, percentile: int) -> str:
        known = percentile <= 90 or percentile == 100 or single.p99_ms is not None
        return digits(single.quantiles_ms[percentile]) if known else DASH

    return Grid(
        caption="SingleStream: the time, in ms, that so many of 100 images keep to",
        head=("Engine", *(str(each) for each in QUANTILES)),
        rows=tuple((name, *(cell(single, each) for each in QUANTILES)) for name, single in singles),
        numbers=frozenset(range(1, len(QUANTILES) + 1)),
    )


def over_time(report: Report) -> Section | None:
    """The sustained runs; None where nobody asked for them."""
    blocks: list[Block] = []
    for row in report.rows:
        run = row.sustained
        if not run:
            continue
        facts = [run.text] if run.text else []
        facts.append(
            f"The median was {digits(run.first)} ms at the start and {digits(run.last)} ms at the end of {duration(run.seconds)} and "
            f"{counted(run.images, 'image')}."
        )
        if run.energy_j is None:
            facts.append("Energy was not measured.")
        else:
            facts.append(
                f"An image takes {digits(run.energy_j)} J, counted on {run.energy_of or 'what the sensor shows'}."
            )
        missing = _not_measured([_read(window.reading) for window in run.windows])
        if missing:
            facts.append(missing)
        blocks.append(Prose(" ".join(facts), title=row.name))
        if run.windows:
            blocks.append(
                Chart(
                    kind="sustained",
                    row=row.name,
                    label=f"Latency and rate of {row.name} over {duration(run.seconds)}. {' '.join(facts)}",
                    caption=f"The line is the median of each stretch, and the band reaches to P90.{_shading(run.windows)}",
                    figures=_windows(row, run.windows),
                )
            )
    return Section("sustained", "Over time", tuple(blocks)) if blocks else None


def contended(reading: Reading) -> bool:
    """Whether others, or a limit, took a share of the processors for which a reading is marked."""
    return bool(Sensors.marks(replace(reading, throttled=None)))


def _shading(windows: Sequence[Window]) -> str:
    text = ""
    if any(window.reading.throttled for window in windows):
        text += " Darkly shaded: a clock was held down."
    marks = [mark for window in windows for mark in Sensors.marks(replace(window.reading, throttled=None))]
    if marks:
        text += f" Lightly shaded: {' '.join(dict.fromkeys(marks))}"
    return text


def _windows(row: Row, windows: Sequence[Window]) -> Grid:
    step = max(1, -(-len(windows) // MOST_WINDOWS))
    rows = tuple(
        (
            duration(window.start_s),
            digits(window.p50_ms),
            digits(window.p90_ms),
            digits(window.rate),
            *_read(window.reading),
        )
        for window in windows[::step]
    )
    shown = "" if step == 1 else f", {len(rows)} of {counted(len(windows), 'stretch', 'stretches')}"
    head = ("From", "P50, ms", "P90, ms", "Images a second", *READ)
    grid = Grid(
        caption=f"{row.name} over time{shown}", head=head, rows=rows, numbers=frozenset(range(1, len(head) - 1))
    )
    return without_empty_columns(grid)


READ = (
    "CPU clock, MHz", "CPU temperature, °C", "GPU clock, MHz", "GPU temperature, °C", "Power, W", "Other processes", "Other machines", "Stops by a limit", "Throttling",
)  # fmt: skip
"""The columns of what the sensors showed."""


def _read(reading: Reading) -> tuple[str, ...]:
    figures = (reading.cpu_mhz, reading.cpu_c, reading.gpu_mhz, reading.gpu_c, reading.power_w)
    throttled = DASH if reading.throttled is None else reading.throttled or "no"
    return (*map(digits, figures), *map(percent, (reading.others, reading.stolen, reading.limited)), throttled)


def _not_measured(readings: Sequence[tuple[str, ...]]) -> str:
    """Which columns of ``READ`` hold nothing, as a sentence; empty where each holds something."""
    names = [
        name.partition(",")[0] for index, name in enumerate(READ) if all(cells[index] == DASH for cells in readings)
    ]
    return f"Not measured: {joined(names)}." if names else ""


def sensors(report: Report) -> tuple[Block, ...]:
    """What the sensors showed while each scenario ran."""
    known = [(row.name, each.name, each.reading) for row in report.rows for each in row.scenarios if each.reading]
    if not known:
        return (Prose("The sensors were not read."),)
    read = [_read(reading) for _, _, reading in known]
    rows = tuple((row, scenario, *cells) for (row, scenario, _), cells in zip(known, read, strict=True))
    head = ("Engine", "Scenario", *READ)
    grid = Grid(caption="What the sensors showed", head=head, rows=rows, numbers=frozenset(range(2, len(head) - 1)))
    powered = sorted({reading.power_of for _, _, reading in known if reading.power_of})
    texts = [f"Power is that of: {joined(powered)}." if powered else "", _not_measured(read)]
    text = " ".join(text for text in texts if text)
    return (without_empty_columns(grid), *((Prose(text, quiet=True),) if text else ()))


def stages(report: Report) -> Section:
    """Where the time of one image goes, and how much of it is the network."""
    known = [row for row in report.rows if row.stages]
    blocks: list[Block] = []
    if known:
        names = list(dict.fromkeys(stage.name for row in known for stage in row.stages))
        shares = joined(
            f"{percent(stage.share)} of {row.name}" for row in known for stage in row.stages if stage.name == "network"
        )
        medians = [{stage.name: stage for stage in row.stages} for row in known]
        grid = Grid(
            caption="The median time of each stage, and its share",
            head=("Engine", *(f"{name}, ms" for name in names)),
            rows=tuple(
                (
                    row.name,
                    *(
                        f"{digits(own[name].median_ms)} ({percent(own[name].share)})" if name in own else DASH
                        for name in names
                    ),
                )
                for row, own in zip(known, medians, strict=True)
            ),
            numbers=frozenset(range(1, len(names) + 1)),
        )
        label = f"The median time of each stage of one image, a bar for each engine. The network takes {shares}."
        caption = "From the picture's file to boxes, one image after the other: medians of each stage."
        blocks.append(Chart(kind="stages", label=label, caption=caption, legend="stages", figures=grid))
    else:
        blocks.append(Prose("The stages of an image were not timed apart."))
    alone = [
        (row.name + (f" ({row.batch} images a run)" if row.batch > 1 else ""), estimated(row.network))
        for row in report.rows
        if row.network
    ]
    if alone:
        caption = "The network alone, without decoding, letterbox and suppression"
        blocks.append(Grid(caption=caption, head=("Engine", "Median, ms"), rows=tuple(alone), numbers=frozenset({1})))
    return Section("stages", "Where the time of an image goes", tuple(blocks))
