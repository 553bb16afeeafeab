"""What a report shows to people, from top to bottom, for the page and the Markdown file alike."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timezone

from edge_effdet.benchmarking.record import Machine, Report
from edge_effdet.benchmarking.report.blocks import Section
from edge_effdet.benchmarking.report.evidence_sections import accuracy, baseline, differences, proof
from edge_effdet.benchmarking.report.figures import counted
from edge_effdet.benchmarking.report.network_section import layers
from edge_effdet.benchmarking.report.setting_sections import notes, pictures_in_a_line, reproduce, setting
from edge_effdet.benchmarking.report.speed_sections import distributions, measured, over_time, stages, summary, tradeoff


@dataclass(frozen=True, slots=True)
class Contents:
    """A report as people read it.

    Attributes:
        title: the models.
        lines: when, where and on what it was measured, a line each.
        verdict: what to do, sentence by sentence.
        alerts: what must not be overlooked, each with the anchor of the section that tells more.
        sections: the sections.
    """

    title: str
    lines: tuple[str, ...]
    verdict: tuple[str, ...]
    alerts: tuple[tuple[str, str], ...]
    sections: tuple[Section, ...]


def contents(report: Report) -> Contents:
    """What a report shows. A section that nobody asked for is left out; in one whose figures are missing stands why."""
    sections = (
        summary(report),
        tradeoff(report),
        distributions(report),
        over_time(report),
        stages(report),
        layers(report),
        accuracy(report),
        differences(report),
        proof(report),
        baseline(report),
        setting(report),
        reproduce(report),
        notes(report),
    )
    settings = report.settings
    return Contents(
        title=", ".join(dict.fromkeys(f"{row.model}, {row.image_size[0]} x {row.image_size[1]}" for row in report.rows))
        or "no engine",
        lines=(
            f"{_when(report.created_at)}, a {settings.mode} run of {counted(settings.rounds, 'round')}",
            _machine_in_a_line(report.machine),
            pictures_in_a_line(report),
        ),
        verdict=report.advice.sentences,
        alerts=_alerts(report),
        sections=tuple(section for section in sections if section),
    )


def _when(created_at: str) -> str:
    """A time in ISO 8601 for people; the text itself where it is none."""
    try:
        # Python 3.10 does not read the Z that stands for UTC.
        moment = datetime.fromisoformat(created_at.replace("Z", "+00:00"))
    except ValueError:
        return created_at
    return f"{moment.astimezone(timezone.utc):%Y-%m-%d %H:%M} UTC" if moment.tzinfo else f"{moment:%Y-%m-%d %H:%M}"


def _machine_in_a_line(machine: Machine) -> str:
    parts = [f"{machine.host}: {machine.jetson.model}" if machine.jetson else f"{machine.host}: {machine.cpu.name}"]
    parts += [counted(machine.cpu.cores, "core"), *(gpu.name for gpu in machine.gpus), machine.system]
    return ", ".join(parts)


def _alerts(report: Report) -> tuple[tuple[str, str], ...]:
    alerts = []
    found = len(report.comparison.regressions) if report.comparison else 0
    if found:
        alerts.append((f"{counted(found, 'figure')} worse than in the baseline by more than the bound", "baseline"))
    skipped = sum(bool(row.skipped) and not measured(row) for row in report.rows)
    if skipped:
        alerts.append((f"{skipped} of {counted(len(report.rows), 'engine')} could not be measured", "summary"))
    marked = sum(bool(row.marks) for row in report.rows)
    if marked:
        alerts.append((f"{counted(marked, 'engine')} with marks: their figures are less certain", "summary"))
    return tuple(alerts)
