"""The tables that ``benchmarks.runner`` prints, from the numbers that it saves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edge_effdet.cli import table


def describe_runner(result: Mapping[str, Any]) -> str:
    """All tables, each below a line that says what it shows."""
    photo = result["photo"]
    parts: list[str] = []
    for each in result["models"]:
        title = f"{each['model']}, {each['image_size'][0]}x{each['image_size'][1]} px"
        if "latency" in each:
            parts.append(
                f"{title}: a JPEG of {photo['width']}x{photo['height']} in memory to boxes, {result['threads']} threads\n\n"
                + describe_latency(each["latency"])
            )
            parts.append(f"{title}: milliseconds by stage\n\n{describe_stages(each['latency']['not_the_network'])}")
        if "folder" in each:
            parts.append(f"{title}: a folder\n\n{describe_folder(each['folder'])}")
        if "process" in each:
            parts.append(f"{title}: a process of its own\n\n{describe_process(each['process'])}")
        if "growth" in each:
            growth = each["growth"]
            parts.append(
                f"{title}: {growth['images']} images after {growth['warm_up_images']}: memory from "
                f"{growth['after_warm_up_mb']:.1f} to {growth['at_the_end_mb']:.1f} MB, {growth['growth_mb']:+.1f} "
                f"(at most {growth['largest_growth_mb']:+.1f})"
            )
    if "install" in result:
        parts.append(describe_install(result["install"]))
    return "\n\n".join(parts)


def describe_latency(latency: Mapping[str, Any]) -> str:
    rows = [("way", "median", "P90", f"/ {latency['ours']}", f"/ {latency['ours_reduced']}", "agree with effdet")]
    for row in latency["rows"]:
        full, reduced = (latency[key].get(row["way"]) for key in ("times_as_fast", "times_as_fast_reduced"))
        rows.append(
            (
                row["way"],
                f"{row['median_ms']:.1f} ms",
                f"{row['p90_ms']:.1f} ms",
                f"{full:.2f}" if full else "-",
                f"{reduced:.2f}" if reduced else "-",
                row["agreeing_with_effdet"] or "-",
            )
        )
    skipped = [f"{name} was left out: {reason}" for name, reason in latency["skipped"].items()]
    return "\n".join([table(rows), *skipped])


def describe_stages(stages: Mapping[str, Mapping[str, float]]) -> str:
    names = ("decode", "letterbox", "network", "suppress", "total", "outside_ms", "plain_decode", "plain_resize")
    rows = [("backend", *(name.replace("_", " ") for name in names), "outside")]
    rows += [
        (backend, *(f"{own[name]:.2f}" for name in names), f"{100 * own['outside_share']:.1f} %")
        for backend, own in stages.items()
    ]
    return table(rows)


def describe_folder(folder: Mapping[str, Mapping[str, Any]]) -> str:
    rows = [("backend", "plain loop", "pipeline", "pipeline / loop", "runs at once")]
    rows += [
        (
            backend,
            *(f"{own['images_per_second'][name]:.1f}/s" for name in ("plain loop", "pipeline")),
            f"{own['pipeline_over_loop']:.2f}",
            f"{own['runs_at_once']} of {own['threads_a_run']} threads",
        )
        for backend, own in folder.items()
    ]
    return table(rows)


def describe_process(process: Mapping[str, Mapping[str, Any]]) -> str:
    rows = [("backend", "to first boxes", "slowest", "the very first", "peak memory")]
    rows += [
        (
            backend,
            *(f"{own[f'{name}_seconds']:.2f} s" for name in ("median", "slowest", "first")),
            f"{own['peak_mb']:.0f} MB",
        )
        for backend, own in process.items()
    ]
    return table(rows)


def describe_install(install: Mapping[str, Any]) -> str:
    if "skipped" in install:
        return f"The device install was not measured: {install['skipped']}"
    parts = ", ".join(f"{name} {size:.1f}" for name, size in install["parts_mb"].items())
    return f"The device install without a backend: {install['total_mb']:.1f} MB ({parts})"
