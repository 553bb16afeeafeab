"""Small bundles that can really be installed: a network of three convolutions, the wheel of the device side, and one more wheel.

That wheel stands for NumPy, Pillow and onnxruntime. It holds a ``.pth`` file that leads to the packages of the Python that runs the tests, so that an
environment takes seconds: it is made by ``venv`` and filled by pip, without an index and with hashes, as on a device.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sysconfig
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_effdet import deploying
from edge_effdet.artifacts import file_sha256, json_text
from edge_effdet.artifacts.reading import to_json
from edge_effdet.deploying.wheel import write_device_wheel
from edge_effdet.device.manifest import ENTRY, SIGNATURE, BundledGraph, Manifest, read_manifest, write_manifest
from tests.emulation.engines import write_engine
from tests.emulation.small_detector import ExactRunner, make_pictures, write_small_detector
from tests.once import make_once

TARGET = "x86-cpu"
PACKAGES = "host_packages-1.0-py3-none-any.whl"


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle that no test changes, made once a run; ``write_bundle`` makes others of it."""
    return make_once(tmp_path_factory, "bundle_template", write_template)


def make_manifest(name: str = "cells", precisions: Sequence[str] = ("int8",), **changes: Any) -> Manifest:
    """The manifest of a bundle for this machine by onnxruntime, installed in the last of the precisions, with some of its fields changed."""
    graphs = {
        each: BundledGraph(
            graph=f"graphs/{name}.{each}.onnx", record=f"records/{each}.json", layers=f"layers/{each}.json"
        )
        for each in precisions
    }
    usual: dict[str, Any] = {
        "name": name,
        "release": "1.0",
        "created_at": "2026-01-01T00:00:00+00:00",
        "made_by": "0.1.0",
        "target": TARGET,
        "backend": "onnxruntime",
        "precision": precisions[-1],
        "graphs": graphs,
        "wheel": "wheels/edge_effdet-0.1.0-py3-none-any.whl",
        "requirements": "requirements.txt",
        "complete": False,
    }
    return Manifest(**(usual | changes))


class WeakRunner(ExactRunner):
    """Finds each object with half of the score."""

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        found = super().run(feeds)
        return {**found, "scores": found["scores"] / 2}


def write_template(folder: Path, weak: bool = False, target: str = TARGET, packages: str = "") -> None:
    """Write a bundle into an empty folder; ``write_bundle`` makes others of it.

    Args:
        folder: of the bundle.
        weak: whether the golden pictures were looked at by a network that is half as sure, so that the bundle's own does not find what it found.
        target: that it is for.
        packages: the folder that has NumPy, Pillow and onnxruntime, where the bundle is installed; empty for the one of this Python.
    """
    import onnx_ir as ir

    from edge_effdet.quant.proof import list_convolutions

    for name in ("graphs", "records", "layers", "wheels"):
        (folder / name).mkdir()
    graph = write_small_detector(folder / "graphs" / "cells.int8.onnx", bits=7)
    with tempfile.TemporaryDirectory() as aside:
        engine = write_engine(
            graph,
            "onnxruntime",
            Path(aside, "cells.int8.onnx"),
            WeakRunner() if weak else ExactRunner(),
            make_pictures(),
        )
    record = json_text(to_json(engine.require_record()), indent=2)
    (folder / "records" / "int8.json").write_text(record, encoding="utf-8")
    layers = [to_json(each) for each in list_convolutions(ir.load(str(graph.path)))]
    (folder / "layers" / "int8.json").write_text(json.dumps(layers), encoding="utf-8")
    wheel = write_device_wheel(folder / "wheels")
    stand_in = folder / "wheels" / PACKAGES
    write_wheel(stand_in, {"host_packages.pth": (packages or sysconfig.get_path("purelib")) + "\n"})
    requirements = f"host-packages==1.0 --hash=sha256:{file_sha256(stand_in)}\n"
    (folder / "requirements.txt").write_text(requirements, encoding="ascii")
    shutil.copyfile(Path(deploying.__file__).parent / "files" / ENTRY, folder / ENTRY)
    (folder / ENTRY).chmod(0o755)
    manifest = make_manifest(
        target=target, made_by=wheel.name.split("-")[1], wheel=f"wheels/{wheel.name}", complete=True
    )
    write_manifest(folder, manifest)


def write_bundle(
    template: Path,
    folder: Path,
    changes: Mapping[str, str] | None = None,
    packages: Mapping[str, str] | None = None,
    **manifest: object,
) -> Path:
    """A bundle like the template, with another manifest.

    Args:
        template: what ``write_template`` wrote.
        folder: of the new bundle, which is not there yet.
        changes: new texts of modules in the wheel of the device side, by their paths in it.
        packages: what the other wheel has beside its ``.pth`` file, by its paths in it.
        manifest: fields of the manifest.
    """
    shutil.copytree(template, folder)
    before = read_manifest(folder)
    if changes:
        rewrite_wheel(folder / before.wheel, changes)
    if packages is not None:
        wheel = folder / "wheels" / PACKAGES
        rewrite_wheel(wheel, packages)
        (folder / "requirements.txt").write_text(
            f"host-packages==1.0 --hash=sha256:{file_sha256(wheel)}\n", encoding="ascii"
        )
    (folder / SIGNATURE).unlink(missing_ok=True)
    write_manifest(folder, replace(before, **manifest))  # type: ignore[arg-type]
    return folder


def write_wheel(path: Path, files: Mapping[str, str]) -> None:
    """A wheel of pure Python."""
    name, version, *_ = path.name.split("-")
    about = f"{name}-{version}.dist-info"
    metadata = {
        f"{about}/METADATA": f"Metadata-Version: 2.1\nName: {name.replace('_', '-')}\nVersion: {version}\n",
        f"{about}/WHEEL": "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    with zipfile.ZipFile(path, "w") as archive:
        for inside, text in {**files, **metadata}.items():
            archive.writestr(inside, text)
        # pip looks neither at hashes nor at sizes of it.
        archive.writestr(
            f"{about}/RECORD", "".join(f"{inside},,\n" for inside in (*files, *metadata, f"{about}/RECORD"))
        )


def rewrite_wheel(path: Path, changes: Mapping[str, str]) -> None:
    """Change or add files of a wheel."""
    with zipfile.ZipFile(path) as archive:
        contents = {each.filename: archive.read(each) for each in archive.infolist()}
    contents |= {name: text.encode() for name, text in changes.items()}
    (record,) = (name for name in contents if name.endswith(".dist-info/RECORD"))
    contents[record] = "".join(f"{name},,\n" for name in contents).encode()
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in contents.items():
            archive.writestr(name, content)


def copy_root(root: Path, place: Path) -> Path:
    """A root with all that is installed in it, as hard links: what writes there replaces files and changes none."""
    return Path(shutil.copytree(root, place, symlinks=True, copy_function=os.link))


def all_files(folder: Path, but: Sequence[str] = ()) -> dict[str, str]:
    """What is in a folder: the hash of each file, and where each link leads; without what is below the names in ``but``."""
    found: dict[str, str] = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if any(name == each or name.startswith(f"{each}/") for each in but):
            continue
        if path.is_symlink():
            found[name] = f"-> {path.readlink()}"
        else:
            found[name] = file_sha256(path) if path.is_file() else "folder"
    return found


def main() -> None:
    """Write two releases, for ``benchmarks/deploy_kills.py``."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.bundles", description="Write two releases of a small bundle."
    )
    parser.add_argument(
        "--output", type=Path, required=True, metavar="DIR", help="write the folders 1.0 and 1.1 into it"
    )
    parser.add_argument("--target", default=TARGET, help=f"that they are for (default: {TARGET})")
    parser.add_argument("--packages", default="", metavar="DIR", help="has NumPy, Pillow and onnxruntime on the device")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as aside:
        write_template(Path(aside), target=arguments.target, packages=arguments.packages)
        for release in ("1.0", "1.1"):
            write_bundle(Path(aside), arguments.output / release, release=release)


if __name__ == "__main__":
    main()
