"""Bring a detector to where it runs: a bundle that builds, proves and runs itself on a device, or what Triton or DeepStream reads."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from edge_effdet.artifacts import PRECISIONS, Engine, load_engine
from edge_effdet.artifacts.reading import to_json
from edge_effdet.cli import Result, add_options, make_parser, options_from, run_verb, table
from edge_effdet.deploying.deepstream import DeepStreamOptions
from edge_effdet.deploying.options import DeployConfig
from edge_effdet.deploying.stage import make_bundle, make_deepstream_folder
from edge_effdet.deploying.triton import write_triton_repository
from edge_effdet.deploying.triton_config import TritonOptions
from edge_effdet.device.manifest import Bundle, file_sizes
from edge_effdet.errors import UsageError

FORMATS = ("bundle", "triton", "deepstream")


def make_argument_parser() -> argparse.ArgumentParser:
    parser = make_parser(
        "deploy",
        "Make a bundle that builds, proves and runs itself on a device, or what Triton Inference Server or DeepStream reads.",
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
    parser.add_argument(
        "--format",
        choices=FORMATS,
        default="bundle",
        help="bundle for edge_effdet's own installer, triton for a model repository of an engine, deepstream for nvinfer (default: bundle)",
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
    add_options(parser, DeployConfig, TritonOptions, DeepStreamOptions)
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
    _refuse_unused(arguments)
    if arguments.format == "triton":
        if not isinstance(source, Engine):
            raise UsageError(
                "Triton runs an engine that was built for its machine; build one there with python -m edge_effdet.build_engine, and give it with --engine."
            )
        options = options_from(TritonOptions, arguments)
        return _written(write_triton_repository(source, Path(arguments.output), options, arguments.name))
    config = options_from(DeployConfig, arguments)
    if arguments.format == "deepstream":
        return _written(make_deepstream_folder(source, config, options_from(DeepStreamOptions, arguments)))
    bundle = make_bundle(source, config)
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


def _refuse_unused(arguments: argparse.Namespace) -> None:
    """Raises UsageError where an option was given that belongs to another format."""
    classes: dict[str, type] = {"bundle": DeployConfig, "triton": TritonOptions, "deepstream": DeepStreamOptions}
    used = {item.name for item in fields(classes[arguments.format])}
    for form, options in classes.items():
        for item in fields(options) if form != "bundle" else ():
            if item.name not in used and getattr(arguments, item.name) != item.default:
                raise UsageError(
                    f"`{item.name}` means nothing to the format {arguments.format}; leave it out, or add --format {form}."
                )


def _written(folder: Path) -> Result:
    files = file_sizes(folder)
    rows = [("file", "MB"), *((name, f"{size / 1e6:.2f}") for name, size in sorted(files.items()))]
    return Result(
        f"{table(rows)}\n\nwritten to {folder}; its README.txt says what to do", {"folder": str(folder), "files": files}
    )


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
