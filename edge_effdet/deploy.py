"""Make a bundle that builds, proves and runs itself on a device."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from edge_effdet.artifacts import PRECISIONS, load_engine
from edge_effdet.artifacts.reading import to_json
from edge_effdet.cli import Result, add_options, make_parser, options_from, run_verb, table
from edge_effdet.deploying.options import DeployConfig
from edge_effdet.deploying.stage import make_bundle
from edge_effdet.device.manifest import Bundle, file_sizes
from edge_effdet.errors import UsageError


def make_argument_parser() -> argparse.ArgumentParser:
    parser = make_parser(
        "deploy",
        "Make a bundle that builds, proves and runs itself on a device.",
        "python -m edge_effdet.deploy --engine engines/bccd.int8.onnx --target jetson-orin-nano --output bundles",
    )
    source = parser.add_mutually_exclusive_group()
    source.add_argument(
        "--engine", type=Path, metavar="F", help="an engine that build_engine wrote, with its folder graphs beside it"
    )
    source.add_argument("--onnx", type=Path, metavar="F", help="a graph of export or quantize")
    source.add_argument(
        "--checkpoint", type=Path, metavar="F", help="a .safetensors of train (default: the shipped model)"
    )
    precision = parser.add_mutually_exclusive_group()
    for name in PRECISIONS:
        precision.add_argument(
            f"--{name}",
            dest="precision",
            action="store_const",
            const=name,
            help=f"install in {name.upper()}" + (" (the default)" if name == "int8" else ""),
        )
    add_options(parser, DeployConfig)
    return parser


def _run(arguments: argparse.Namespace) -> Result:
    source = arguments.checkpoint if arguments.onnx is None else arguments.onnx
    if arguments.engine is not None:
        source = load_engine(arguments.engine)
        if arguments.precision not in (None, source.precision):
            raise UsageError(
                f"{arguments.engine} is {source.precision.upper()}, and --{arguments.precision} asks for another precision; leave it out, or give the "
                "checkpoint."
            )
    arguments.precision = arguments.precision or "int8"
    bundle = make_bundle(source, options_from(DeployConfig, arguments))
    data = {
        "bundle": str(bundle.path),
        "archive": None if bundle.archive is None else str(bundle.archive),
        "id": bundle.id,
        "sha256": bundle.sha256,
        "signed_by": bundle.signed_by,
        "bytes": sum(file_sizes(bundle.path).values()),
        **to_json(bundle.manifest),
    }
    return Result(describe(bundle), data)


def describe(bundle: Bundle) -> str:
    """What is in a bundle, and what to do with it."""
    manifest = bundle.manifest
    sizes = file_sizes(bundle.path)
    folders: dict[str, int] = {}
    for name, size in sizes.items():
        top = name.partition("/")[0] + ("/" if "/" in name else "")
        folders[top] = folders.get(top, 0) + size
    rows = [("in the bundle", "MB"), *((name, f"{size / 1e6:.2f}") for name, size in sorted(folders.items()))]
    rows.append(("together", f"{sum(sizes.values()) / 1e6:.2f}"))
    signed = "not signed" if bundle.signed_by is None else f"signed by {bundle.signed_by}"
    network = (
        "needs no network there"
        if manifest.complete
        else "fetches its packages there; add --wheels for a device without a network"
    )
    lines = [
        f"{manifest.name} {manifest.release} for {manifest.target}: {manifest.precision.upper()} by {manifest.backend}, {signed}, {network}",
        "",
        table(rows),
        "",
        f"written to {bundle.path}",
    ]
    if bundle.archive is not None:
        lines.append(f"       and {bundle.archive} ({bundle.archive.stat().st_size / 1e6:.1f} MB)")
    lines += ["", "on the device: unpack it, then ./edge-effdet install --dry-run"]
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    return run_verb(make_argument_parser(), _run, argv)


if __name__ == "__main__":
    sys.exit(main())
