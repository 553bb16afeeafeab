"""The README's commands run as they stand there, but with fewer and smaller pictures, a shorter training and a quicker INT8."""

from __future__ import annotations

import re
import runpy
import shlex
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from tests.integration.conftest import QUICK

ROOT = Path(__file__).parents[2]
SHORTER = {
    "train": "--epochs 1 --image-size 64 --workers 0",
    "quantize": QUICK,
    # A race takes minutes, and has tests of its own.
    "build_engine": f"{QUICK} --backend openvino",
}


def read_commands() -> list[str]:
    blocks = re.findall(r"```bash\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    return [line for block in blocks for line in block.replace("\\\n", " ").splitlines() if line.strip()]


def run_module(module: str, arguments: list[str]) -> object:
    """Run a module as ``python -m`` does, in this process, which has imported torch already. Returns the exit code."""
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        patch.setattr(sys, "argv", [module, *arguments])
        # And the modules of the commands too, which runpy warns of.
        warnings.filterwarnings("ignore", ".*found in sys.modules", RuntimeWarning)
        try:
            runpy.run_module(module, run_name="__main__", alter_sys=True)
        except SystemExit as ended:
            return ended.code
    return 0


@pytest.mark.data
def test_commands_of_the_tour(
    bccd: Path, bccd_part: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bccd").symlink_to(bccd_part)
    (tmp_path / "photos").mkdir()
    for name in ("BloodImage_00007.jpg", "BloodImage_00021.jpg"):
        shutil.copy(bccd / "JPEGImages" / name, tmp_path / "photos")
    # What answers for ever and what measures for minutes have tests of their own.
    left_out = ("edge_effdet.serve", "edge_effdet.benchmark")
    commands = [
        each for each in read_commands() if each.startswith("python ") and not any(name in each for name in left_out)
    ]
    assert len(commands) >= 5
    for command in commands:
        python, m, module, *arguments = shlex.split(command)
        assert (python, m) == ("python", "-m")
        code = run_module(module, [*arguments, *SHORTER.get(module.rsplit(".", 1)[-1], "").split()])
        said = capsys.readouterr()
        assert code == 0, f"{command}\n{said.err}"
        assert said.out.strip(), command
    made = {path.name for path in (tmp_path / "engines").iterdir()}
    assert {"bccd.int8.onnx", "bccd.int8.onnx.json", "bccd.int8.jpg"} <= made
    assert list((tmp_path / "bundles").glob("bccd-*-jetson-orin-nano.tar.*"))
    assert (tmp_path / "found" / "detections.json").is_file()


def test_make_knows_its_targets():
    targets = [command.split()[1] for command in read_commands() if command.startswith("make ")]
    assert targets == ["engine", "test"]
    for target in targets:
        subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, check=True)


def test_links_lead_somewhere():
    named = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "RELEASE.md", "benchmarks/README.md")]
    for document in (*named, *(ROOT / "docs").glob("*.md"), *(ROOT / "docs" / "decisions").glob("*.md")):
        for link in re.findall(r"\]\((?!https?:)([^)#]+)\)", document.read_text()):
            assert (document.parent / link).exists(), f"{document.name} links to {link}"
