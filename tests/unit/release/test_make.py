"""The package is built from what git has, twice with the same bytes; the device's part has neither model nor host; an audit that asked nobody is none."""

from __future__ import annotations

import json
import os
import subprocess
import tarfile
import zipfile
from pathlib import Path

import pytest

from edge_effdet.deploying.wheel import write_device_wheel
from release import make
from release.make import (
    ReleaseError,
    build_packages,
    check_contents,
    copy_tracked,
    judge_audit,
    require_same_bytes,
    write_sums,
)

EPOCH = 1_700_000_000
MODEL = "edge_effdet/quickstart/quickstart.onnx"
LICENSE = "edge_effdet/quickstart/bccd/LICENSE"


def build(folder: Path) -> list[Path]:
    copy_tracked(make.ROOT, folder / "source")
    return build_packages(folder / "source", folder / "dist", EPOCH)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The wheel and the source archive."""
    return build(tmp_path_factory.mktemp("built"))


@pytest.fixture(scope="module")
def wheel(built: list[Path]) -> Path:
    return next(path for path in built if path.suffix == ".whl")


def names_in(path: Path) -> list[str]:
    if path.suffix == ".whl":
        with zipfile.ZipFile(path) as archive:
            return archive.namelist()
    with tarfile.open(path) as archive:
        # Without the folder that holds all of it.
        return [name.partition("/")[2] for name in archive.getnames()]


def test_another_place_another_time_and_other_modes_give_the_same_bytes(built: list[Path], tmp_path: Path):
    before = os.umask(0o077)
    try:
        source = tmp_path / "anderswo" / "source"
        copy_tracked(make.ROOT, source)
        for path in source.rglob("*"):
            os.utime(path, (1, 1))
        again = build_packages(source, tmp_path / "dist", EPOCH)
    finally:
        os.umask(before)
    require_same_bytes(built, again)


def test_a_byte_that_differs_is_named(tmp_path: Path):
    files = []
    for place, content in (("one", b"a"), ("two", b"b")):
        (tmp_path / place).mkdir()
        (tmp_path / place / "same.whl").write_bytes(b"")
        (tmp_path / place / "package.whl").write_bytes(content)
        files.append(sorted((tmp_path / place).iterdir()))
    with pytest.raises(ReleaseError, match=r"differ in package\.whl;"):
        require_same_bytes(*files)
    with pytest.raises(ReleaseError, match=r"same\.whl"):
        require_same_bytes(files[0], files[0][:1])


def test_what_is_shipped_and_what_is_not(built: list[Path], wheel: Path):
    assert {path.suffix for path in built} == {".whl", ".gz"}
    inside = names_in(wheel)
    info = f"{wheel.name.removesuffix('-py3-none-any.whl')}.dist-info"
    assert {MODEL, LICENSE, f"{info}/licenses/LICENSE", f"{info}/licenses/NOTICE"} <= set(inside)
    assert {name.split("/")[0] for name in inside} == {"edge_effdet", info}
    source = names_in(next(path for path in built if path.suffix == ".gz"))
    assert {
        MODEL,
        LICENSE,
        "NOTICE",
        "SECURITY.md",
        "Makefile",
        "mkdocs.yml",
        "constraints.txt",
        "docs/trust.md",
        "tests/conftest.py",
    } <= set(source)
    assert not [
        name
        for name in inside + source
        if "__pycache__" in name or name.startswith((".git/", "runs/", "dist/", ".venv"))
    ]


def test_the_notice_names_whose_files_are_shipped():
    said = (make.ROOT / "NOTICE").read_text()
    assert LICENSE in said and MODEL in said
    assert (make.ROOT / LICENSE).read_text().startswith("MIT License")


def test_check_wheel_contents_has_nothing_to_say(wheel: Path):
    check_contents([wheel])


def test_check_wheel_contents_would_notice(wheel: Path, tmp_path: Path):
    bad = tmp_path / wheel.name
    more = {"edge_effdet/__pycache__/cli.cpython-311.pyc": "x", "tests/__init__.py": "x = 1\n"}
    with zipfile.ZipFile(wheel) as whole, zipfile.ZipFile(bad, "w") as archive:
        for name in whole.namelist():
            # It believes the list in the wheel.
            listed = "".join(f"{each},,\n" for each in more) if name.endswith("/RECORD") else ""
            archive.writestr(name, whole.read(name) + listed.encode())
        for name, text in more.items():
            archive.writestr(name, text)
    with pytest.raises(ReleaseError, match=r"W001(.|\n)*W005"):
        check_contents([bad])


def test_the_devices_part_comes_out_of_the_wheel_as_it_comes_out_of_the_tree(wheel: Path, tmp_path: Path):
    device = make.write_device_part(wheel, tmp_path / "device")
    assert device.read_bytes() == write_device_wheel(tmp_path / "tree").read_bytes()
    assert not [name for name in names_in(device) if "quickstart" in name or "/training/" in name]
    check_contents([device])


def test_twine_has_nothing_to_say(built: list[Path], wheel: Path, tmp_path: Path):
    pytest.importorskip("twine", reason="the extra release is not installed")
    make.check_metadata([*built, make.write_device_part(wheel, tmp_path)])


def test_a_list_of_components(tmp_path: Path):
    pytest.importorskip("cyclonedx_py", reason="the extra release is not installed")
    make.write_sbom({"numpy", "pillow"}, tmp_path / "sbom.json", EPOCH)
    found = json.loads((tmp_path / "sbom.json").read_text())
    assert found["bomFormat"] == "CycloneDX"
    assert {each["name"] for each in found["components"]} == {"numpy", "pillow"}
    assert found["metadata"]["component"]["name"] == "edge-effdet"
    assert found["metadata"]["timestamp"].startswith("2023-11-14")


def test_only_what_git_has_or_would_take_is_built(tmp_path: Path):
    root, copy = tmp_path / "root", tmp_path / "copy"
    root.mkdir()
    subprocess.run(["git", "init", "--quiet", str(root)], check=True)
    for name, text in (
        (".gitignore", "*.log\n"),
        ("a.py", "1"),
        ("sub/ä.py", "2"),
        ("secret.log", "3"),
        ("gone.py", "4"),
    ):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text(text)
    subprocess.run(["git", "-C", str(root), "add", "a.py", "gone.py"], check=True)
    (root / "gone.py").unlink()
    copy_tracked(root, copy)
    assert {path.relative_to(copy).as_posix() for path in copy.rglob("*") if path.is_file()} == {
        ".gitignore",
        "a.py",
        "sub/ä.py",
    }


def test_changes_that_are_not_committed_end_it(tmp_path: Path):
    subprocess.run(["git", "init", "--quiet", str(tmp_path)], check=True)
    (tmp_path / "new.py").write_text("")
    with pytest.raises(ReleaseError, match=r"\?\? new\.py; commit them"):
        make.make_release(tmp_path, tmp_path / "dist")
    assert not (tmp_path / "dist").exists()


def test_no_git_is_said(tmp_path: Path):
    with pytest.raises(ReleaseError, match="git failed"):
        copy_tracked(tmp_path, tmp_path / "copy")


def test_sums_are_those_of_sha256sum(tmp_path: Path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a.txt").write_text("a")
    (tmp_path / "b.txt").write_text("b")
    write_sums(tmp_path)
    check = ["sha256sum", "--check", "--strict", "SHA256SUMS"]
    assert subprocess.run(check, cwd=tmp_path, stdout=subprocess.DEVNULL, check=False).returncode == 0
    (tmp_path / "b.txt").write_text("c")
    assert subprocess.run(check, cwd=tmp_path, capture_output=True, check=False).returncode == 1


def test_an_audit_without_advisories():
    rows = [{"name": "a", "version": "1", "vulns": []}, {"name": "b", "version": "2", "vulns": []}]
    assert judge_audit(rows) == "no advisories against 2 packages"


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([{"name": "a", "version": "1", "vulns": [{"id": "PYSEC-1"}]}], "a 1: PYSEC-1"),
        (
            [{"name": "a", "version": "1", "vulns": []}, {"name": "b", "skip_reason": "not found on PyPI"}],
            "1 of 2 packages.*not found on PyPI",
        ),
        ([], "the list is empty"),
    ],
)
def test_an_audit_that_found_something_or_asked_nobody(rows: list[dict], said: str):
    with pytest.raises(ReleaseError, match=said):
        judge_audit(rows)
