"""The sections of a report on what was measured on and how, and on how to repeat it."""

from __future__ import annotations

from edge_effdet.benchmarking.record import Jetson, Machine, Report
from edge_effdet.benchmarking.report.blocks import (
    DASH,
    Block,
    Bullets,
    Command,
    Facts,
    Grid,
    Section,
)
from edge_effdet.benchmarking.report.figures import (
    counted,
    digits,
    joined,
    megabytes,
    percent,
    plain,
)
from edge_effdet.benchmarking.report.speed_sections import sensors


def setting(report: Report) -> Section:
    """What was measured on, with which settings, and what the sensors showed."""
    return Section(
        "machine",
        "What was measured, and how",
        (
            Facts("The machine", _machine(report.machine)),
            Facts("The settings", _settings(report)),
            *_queries(report),
            *_probes(report),
            *sensors(report),
        ),
    )


def _told(value: object) -> str:
    """What a system tells or does not."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "not measured" if value is None else str(value)


def _machine(machine: Machine) -> tuple[tuple[str, str], ...]:
    cpu, limits = machine.cpu, machine.limits
    cores = f"{counted(cpu.cores, 'core')}, {counted(cpu.threads, 'thread')}"
    items = [
        ("Host", machine.host),
        ("System", f"{machine.system}, kernel {machine.kernel}"),
        ("Processor", f"{cpu.name} ({cpu.architecture}), {cores}"),
        ("Instruction sets", ", ".join(cpu.instructions) or "none that matter"),
        ("Governor", ", ".join(cpu.governors) or "not measured"),
        ("Highest clock", _told(cpu.max_mhz and f"{cpu.max_mhz:,.0f} MHz")),
        ("Turbo", _told(cpu.turbo)),
        ("Virtual machine", _told(cpu.hypervisor)),
        ("Memory", megabytes(machine.memory_bytes)),
    ]
    for gpu in machine.gpus:
        known = {
            "driver": gpu.driver,
            "CUDA": gpu.cuda,
            "compute capability": gpu.compute_capability,
            "memory": gpu.memory_bytes and megabytes(gpu.memory_bytes),
            "power limit": gpu.power_limit_w and f"{digits(gpu.power_limit_w)} W",
        }
        items.append(
            ("GPU", ", ".join([gpu.name, *(f"{name} {value or 'not measured'}" for name, value in known.items())]))
        )
    if not machine.gpus:
        items.append(("GPU", f"not asked: {machine.gpu_note}" if machine.gpu_note else "none was found"))
    if machine.jetson:
        items += _jetson(machine.jetson)
    allowed = [
        f"{plain(limits.cpus)} processors" if limits.cpus else "",
        megabytes(limits.memory_bytes) if limits.memory_bytes else "",
    ]
    items.append(("Limits of the container", joined(text for text in allowed if text) or "none"))
    items.append(
        (
            "Stopped by the limit",
            DASH if limits.throttled_share is None else f"{percent(limits.throttled_share)} of the periods",
        )
    )
    load = None if machine.load_before is None else f"{digits(machine.load_before)} processes on average"
    items += [("Load before", _told(load)), ("Python", machine.python)]
    items.append(("Packages", ", ".join(f"{name} {version}" for name, version in machine.packages.items()) or "none"))
    return tuple((name, "not measured" if value == DASH else value) for name, value in items)


def _jetson(jetson: Jetson) -> list[tuple[str, str]]:
    return [
        ("Jetson", f"{jetson.model}, Jetson Linux {_told(jetson.l4t)}, JetPack {_told(jetson.jetpack)}"),
        ("Power mode", _told(jetson.power_mode)),
        ("Clocks held by jetson_clocks", _told(jetson.clocks_locked)),
    ]


def pictures_in_a_line(report: Report) -> str:
    """Which pictures the engines were timed on."""
    images = report.images
    kinds = {"labelled": "labelled picture", "golden": "golden picture", "drawn": "drawn picture"}
    text = counted(images.count, kinds.get(images.kind, f"{images.kind} picture"))
    if images.name:
        text += f" of {images.name}" + (f" ({images.split})" if images.split else "")
    height, width = images.median_size
    return text + (f", {height} x {width} pixels (the median height and width)" if height else "")


def _settings(report: Report) -> tuple[tuple[str, str], ...]:
    settings, images = report.settings, report.images
    items = [
        ("Mode", f"{settings.mode}, {counted(settings.rounds, 'round')} in turns"),
        ("Driven by", settings.driver),
        ("Pictures", pictures_in_a_line(report)),
        (
            "Threshold",
            f"{plain(settings.score_threshold)} for the timed runs, {plain(settings.quality_threshold)} for AP",
        ),
        ("Bound of Server", f"{plain(settings.bound_ms)} ms for 99 of 100 images"),
        ("Threads", counted(settings.threads, "thread") if settings.threads else "what suits"),
        ("edge-effdet", settings.version),
    ]
    if images.sha256:
        items.insert(3, ("SHA-256 of the data", images.sha256))
    return tuple(items)


def _queries(report: Report) -> tuple[Block, ...]:
    """How many queries there were and why, once for all engines for which the reason is the same."""
    reasons: dict[tuple[str, str], list[str]] = {}
    for row in report.rows:
        for each in row.scenarios:
            reasons.setdefault((each.name, each.enough), []).append(row.name)
    everyone = [row.name for row in report.rows if row.scenarios]
    texts = tuple(
        f"{name}{'' if rows == everyone else f' ({joined(rows)})'}: {enough}"
        for (name, enough), rows in reasons.items()
    )
    return (Bullets(texts, title="How many queries, and why"),) if texts else ()


def _probes(report: Report) -> tuple[Block, ...]:
    rows = tuple(
        (row.name, digits(probe.rate), f"{probe.queries:,}", digits(probe.p99_ms), "yes" if probe.held else "no")
        for row in report.rows
        for each in row.scenarios
        for probe in each.probes
    )
    head = ("Engine", "Images a second", "Queries", "P99, ms", "Held")
    return (
        (Grid(caption="Server: the rates that were tried", head=head, rows=rows, numbers=frozenset({1, 2, 3})),)
        if rows
        else ()
    )


def reproduce(report: Report) -> Section:
    """The command that repeats all this, and the files that it takes."""
    files = Grid(
        caption="The files",
        head=("Engine", "File", "Backend", "Input", "SHA-256"),
        rows=tuple(
            (
                row.name,
                row.path,
                f"{row.backend} {row.backend_version}".strip(),
                f"{row.image_size[0]} x {row.image_size[1]}, batch {row.batch}",
                row.engine_sha256,
            )
            for row in report.rows
        ),
    )
    return Section(
        "reproduce", "How to reproduce it", (Command(report.settings.command), *((files,) if report.rows else ()))
    )


def notes(report: Report) -> Section | None:
    """What a reader has to know besides; None where there is nothing."""
    return Section("notes", "Notes", (Bullets(report.notes),)) if report.notes else None
