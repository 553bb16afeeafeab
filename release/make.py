"""Make the files of a release: ``make release``, or

    python -m release.make --output dist

The package is built from what git has, twice in two folders, and the bytes of both have to be the same. The files are

- ``edge_effdet-X.Y.Z.tar.gz`` and ``edge_effdet-X.Y.Z-py3-none-any.whl``, which are published;
- ``device/edge_effdet-X.Y.Z-py3-none-any.whl``, the device's part alone, which ``deploy`` puts into bundles. It has the name of the whole wheel, so it is
  never published beside it;
- ``sbom/``: what a host and what a device get, as CycloneDX; ``licenses.md``; ``audit.json``; ``SHA256SUMS`` over all of it but the audit, which changes from day to day.

Nothing is uploaded.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import venv
import zipfile
from collections.abc import Collection, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from packaging.utils import canonicalize_name

from release import licenses

ROOT = Path(__file__).resolve().parents[1]
DEVICE = "device"
DEVICE_SBOM, HOST_SBOM = "device.cdx.json", "host.cdx.json"
WRITE_DEVICE_WHEEL = "import sys; from pathlib import Path; from edge_effdet.deploying.wheel import write_device_wheel as w; w(Path(sys.argv[1]))"


class ReleaseError(Exception):
    """Why there is no release, in one sentence or with what a tool said."""


def copy_tracked(root: Path, target: Path) -> None:
    """Copy the files that git has or would take, with their present content, into an empty folder.

    Raises:
        ReleaseError: git has no such folder.
    """
    done = _run(["git", "-C", root, "ls-files", "-z", "--cached", "--others", "--exclude-standard"], "git", root)
    for name in filter(None, done.split("\0")):
        source, copy = root / name, target / name
        if source.is_file():
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, copy)


def build_packages(source: Path, output: Path, epoch: int) -> list[Path]:
    """Build the source archive, and the wheel from it, with the hatchling that is installed here.

    Args:
        source: a folder with the package's files and nothing else.
        output: where both files are put.
        epoch: Unix seconds, the time of all files in them.

    Raises:
        ReleaseError: the build failed.
    """
    words = [sys.executable, "-m", "build", "--no-isolation", "--outdir", output, source]
    _run(words, "build", source, SOURCE_DATE_EPOCH=str(epoch))
    return sorted(output.iterdir())


def require_same_bytes(first: Sequence[Path], second: Sequence[Path]) -> None:
    """Hold two builds against each other. Raises ReleaseError where a file is missing or differs in a byte."""
    hashes = [{path.name: file_digest(path) for path in paths} for paths in (first, second)]
    differ = sorted(name for name in hashes[0].keys() | hashes[1].keys() if hashes[0].get(name) != hashes[1].get(name))
    if differ:
        raise ReleaseError(
            f"Two builds of the same files differ in {', '.join(differ)}; look what depends on time, place or order."
        )


def write_device_part(wheel: Path, folder: Path) -> Path:
    """Write the device's wheel from the whole one, as ``deploy`` does from the package that is installed.

    Args:
        wheel: the whole wheel.
        folder: where the device's wheel is put.

    Raises:
        ReleaseError: it could not be written.
    """
    with tempfile.TemporaryDirectory() as unpacked:
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(unpacked)
        # Found before what is installed here. The working folder of -c comes first, and has no package.
        _run(
            [sys.executable, "-c", WRITE_DEVICE_WHEEL, folder],
            "the device's wheel",
            Path(unpacked),
            PYTHONPATH=unpacked,
        )
    return next(folder.glob("*.whl"))


def check_metadata(files: Sequence[Path]) -> None:
    """Hold the metadata of source archives and wheels against twine. Raises ReleaseError with what it said."""
    _run([sys.executable, "-m", "twine", "check", "--strict", *files], "twine", ROOT)


def check_contents(wheels: Sequence[Path]) -> None:
    """Hold wheels against check-wheel-contents: nothing twice, nothing beside the package, nothing compiled. Raises ReleaseError with what it said."""
    _run([sys.executable, "-m", "check_wheel_contents", *wheels], "check-wheel-contents", ROOT)


def write_sbom(names: Collection[str], path: Path, epoch: int) -> None:
    """Write the list of components of the package with these distributions, as CycloneDX 1.6 in JSON, checked against its schema.

    Args:
        names: installed distributions.
        path: the file.
        epoch: Unix seconds, the time in it.

    Raises:
        ReleaseError: cyclonedx-py failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        # cyclonedx-py takes all that an environment has, so this one has the metadata of the wanted packages alone.
        venv.create(folder, symlinks=True)
        (site,) = Path(folder).glob("lib/python*/site-packages")
        for distribution in metadata.distributions():
            home = Path(str(distribution.locate_file("."))) / f"{_stem(distribution)}.dist-info"
            if canonicalize_name(distribution.metadata["Name"]) in names and home.is_dir():
                (site / home.name).symlink_to(home)
        path.parent.mkdir(parents=True, exist_ok=True)
        words = [
            sys.executable,
            "-m",
            "cyclonedx_py",
            "environment",
            "--pyproject",
            ROOT / "pyproject.toml",
            "--mc-type",
            "library",
        ]
        words += ["--output-reproducible", "--output-file", path, Path(folder) / "bin" / "python"]
        _run(words, "cyclonedx-py", ROOT, SOURCE_DATE_EPOCH=str(epoch))


def audit_versions(path: Path) -> str:
    """Ask PyPI for advisories against the versions of ``constraints.txt``, and write the answer, a JSON object of pip-audit.

    Returns:
        How many packages were asked for.

    Raises:
        ReleaseError: there are advisories, or a package could not be asked for.
    """
    words = [
        "--requirement",
        str(ROOT / "constraints.txt"),
        "--no-deps",
        "--disable-pip",
        "--format",
        "json",
        "--output",
        str(path),
    ]
    words = [sys.executable, "-m", "pip_audit", "--progress-spinner", "off", *words]
    done = subprocess.run(words, capture_output=True, text=True, cwd=ROOT, check=False)
    if not path.is_file():
        raise ReleaseError(f"pip-audit could not ask for advisories:\n{done.stderr.strip()}")
    return judge_audit(json.loads(path.read_text(encoding="utf-8"))["dependencies"])


def judge_audit(rows: Sequence[Mapping[str, Any]]) -> str:
    """Read what pip-audit found: of each package ``vulns``, or ``skip_reason`` where it was not asked for, which pip-audit takes for success.

    Raises:
        ReleaseError: there are advisories, or a package could not be asked for.
    """
    found = [f"{row['name']} {row['version']}: {each['id']}" for row in rows for each in row.get("vulns", ())]
    if found:
        raise ReleaseError("There are advisories: " + ", ".join(found) + "; take versions that have none.")
    skipped = [row for row in rows if "skip_reason" in row]
    if skipped or not rows:
        reason = skipped[0]["skip_reason"] if skipped else "the list is empty"
        raise ReleaseError(
            f"{len(skipped)} of {len(rows)} packages could not be asked for, such as: {reason}. Run pip-audit where PyPI's advisories can be reached."
        )
    return f"no advisories against {len(rows)} packages"


def write_sums(folder: Path) -> Path:
    """Write ``SHA256SUMS`` over all files of a folder, for ``sha256sum -c``."""
    path = folder / "SHA256SUMS"
    files = sorted(each for each in folder.rglob("*") if each.is_file() and each != path)
    path.write_text(
        "".join(f"{file_digest(each)}  {each.relative_to(folder).as_posix()}\n" for each in files), encoding="utf-8"
    )
    return path


def file_digest(path: Path) -> str:
    """The SHA-256 of a file's content, in hexadecimal."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def make_release(root: Path, output: Path, allow_changes: bool = False, audit: bool = True) -> None:
    """Make all files of a release; see the module.

    Args:
        root: the repository.
        output: a folder that is made anew when everything was built.
        allow_changes: build what is not committed too, to try.
        audit: whether to ask for advisories, which needs a network.

    Raises:
        ReleaseError: something differs, is refused, or was found; what was made until then stays in ``output``.
    """
    changed = _run(["git", "-C", root, "status", "--porcelain"], "git", root)
    if changed and not allow_changes:
        raise ReleaseError(
            f"The work tree has changes that are not committed, such as {changed.splitlines()[0].strip()}; commit them."
        )
    epoch = int(_run(["git", "-C", root, "log", "-1", "--format=%ct"], "git", root))
    with tempfile.TemporaryDirectory(prefix="edge-effdet-") as work:
        built = []
        for place in ("one", "another place"):
            source = Path(work) / place / "source"
            copy_tracked(root, source)
            built.append(build_packages(source, Path(work) / place / "dist", epoch))
        require_same_bytes(*built)
        shutil.rmtree(output, ignore_errors=True)
        output.mkdir(parents=True)
        files = [Path(shutil.copy(path, output)) for path in built[0]]
    print("built twice, with the same bytes: " + ", ".join(path.name for path in files))
    device = write_device_part(next(path for path in files if path.suffix == ".whl"), output / DEVICE)
    print(f"the device's part: {device.relative_to(output)}, {device.stat().st_size / 1e6:.1f} MB")
    check_metadata([*files, device])
    check_contents([path for path in (*files, device) if path.suffix == ".whl"])
    print("twine and check-wheel-contents have nothing to say")
    for name, extras in _sboms().items():
        names, missing = licenses.required_by(extras)
        write_sbom(names, output / "sbom" / name, epoch)
        print(
            f"sbom/{name}: {len(names)} components"
            + (f"; not installed here: {', '.join(sorted(missing))}" if missing else "")
        )
    if licenses.main(["--output", str(output / "licenses.md")]):
        raise ReleaseError("The licences above do not let a release be made as it is.")
    print("licenses.md: no licence that may not be passed on, but for what is named there")
    print(write_sums(output))
    if audit:
        print(f"audit.json: {audit_versions(output / 'audit.json')}")
    else:
        print("nobody was asked for advisories (--no-audit)")


def _sboms() -> Mapping[str, Collection[str]]:
    """The lists of components, and the extras of each."""
    from edge_effdet.deploying.wheel import EXTRAS

    return {DEVICE_SBOM: EXTRAS, HOST_SBOM: licenses.user_extras()}


def _stem(distribution: metadata.Distribution) -> str:
    """What the folder of an installed distribution begins with."""
    files = distribution.files or []
    return next(
        (path.parts[0].removesuffix(".dist-info") for path in files if path.parts[0].endswith(".dist-info")), ""
    )


def _run(words: Sequence[str | Path], title: str, folder: Path, **environment: str) -> str:
    done = subprocess.run(
        list(map(str, words)),
        cwd=folder,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise ReleaseError(f"{title} failed:\n{(done.stdout + done.stderr).strip()}")
    return done.stdout


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m release.make", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--output", type=Path, default=ROOT / "dist", metavar="DIR", help="the folder for the files (default: dist)"
    )
    parser.add_argument("--allow-changes", action="store_true", help="build what is not committed too, to try")
    parser.add_argument(
        "--no-audit",
        dest="audit",
        action="store_false",
        help="ask nobody for advisories, where there is no network; it has to be done before publishing",
    )
    arguments = parser.parse_args(argv)
    try:
        make_release(ROOT, arguments.output.resolve(), arguments.allow_changes, arguments.audit)
    except ReleaseError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
