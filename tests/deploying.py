"""What tests of bundles share: other Pythons, and packages that were made for a test."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import tarfile
import zipfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path


@cache
def find_python(version: str) -> Path | None:
    """An interpreter of this version, as in 3.10, on the PATH or among those that pyenv made; None where there is none that runs."""
    places = [
        shutil.which(f"python{version}"),
        *sorted(Path.home().glob(f".pyenv/versions/{version}.*/bin/python"), reverse=True),
    ]
    code = "import sys; print('%d.%d' % sys.version_info[:2])"
    for place in filter(None, places):
        done = subprocess.run([str(place), "-c", code], capture_output=True, text=True)
        # What pyenv puts on the PATH refuses to start a version that is not chosen.
        if done.returncode == 0 and done.stdout.strip() == version:
            return Path(place)
    return None


def make_wheel(folder: Path, name: str, version: str, requires: Sequence[str] = (), tag: str = "py3-none-any") -> Path:
    """A wheel with one empty module, for an index that is a folder (``pip --find-links``)."""
    info = f"{name}-{version}.dist-info"
    about = [
        "Metadata-Version: 2.1",
        f"Name: {name}",
        f"Version: {version}",
        *(f"Requires-Dist: {each}" for each in requires),
    ]
    path = folder / f"{name}-{version}-{tag}.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{name}.py", "")
        archive.writestr(f"{info}/METADATA", "\n".join(about) + "\n")
        archive.writestr(f"{info}/WHEEL", f"Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: {tag}\n")
        archive.writestr(f"{info}/RECORD", "")
    return path


def make_source(folder: Path, name: str, version: str, requires: Sequence[str] = (), build: Sequence[str] = ()) -> Path:
    """A source archive whose build backend is a file in it, so that its metadata can be read without an index."""
    about = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n" + "".join(
        f"Requires-Dist: {each}\n" for each in requires
    )
    backend = (
        "import pathlib\n"
        "def prepare_metadata_for_build_wheel(folder, config=None):\n"
        f"    place = pathlib.Path(folder, '{name}-{version}.dist-info')\n"
        "    place.mkdir()\n"
        f"    (place / 'METADATA').write_text({about!r})\n"
        "    (place / 'WHEEL').write_text('Wheel-Version: 1.0')\n"
        "    return place.name\n"
        "def build_wheel(folder, config=None, metadata=None):\n"
        "    raise SystemExit('nothing is built on the host')\n"
    )
    project = f'[build-system]\nrequires = {json.dumps(list(build))}\nbuild-backend = "backend"\nbackend-path = ["."]\n'
    path = folder / f"{name}-{version}.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        for inside, text in (("pyproject.toml", project), ("backend.py", backend), ("PKG-INFO", about)):
            entry = tarfile.TarInfo(f"{name}-{version}/{inside}")
            entry.size = len(text)
            tar.addfile(entry, io.BytesIO(text.encode()))
    return path
