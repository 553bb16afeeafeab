"""A run that is killed, divided, refused memory or disk: what it leaves, and that it goes on as if nothing had been."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.numpy import load_file

from edge_effdet import train
from edge_effdet.cli import TERMINATED
from edge_effdet.models.checkpoint import load_network, open_checkpoint
from edge_effdet.training.resume import load_progress, save_progress
from edge_effdet.training.stage import find_dead_loader
from tests.scenes import write_scenes

OPTIONS = "--image-size 64 --epochs 3 --batch-size 4 --workers 0 --validate-every 3 --save-minutes 0 --device cpu"


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("scenes")
    write_scenes(root, {"train": 12, "val": 2}, seed=3)
    return root


def arguments(scenes: Path, output: Path, extra: str = "") -> list[str]:
    return f"--data {scenes} --output {output} {OPTIONS} {extra}".split()


def command(scenes: Path, output: Path, extra: str = "") -> list[str]:
    """For a process of its own, which is what can be killed; it takes seconds to import torch."""
    return [sys.executable, "-m", "edge_effdet.train", *arguments(scenes, output, extra)]


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Sums have one order, as in a process with ``OMP_NUM_THREADS=1``, so that losses can be compared to the last bit."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def losses_of(folder: Path) -> list[dict[str, float]]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: row[name] for name in ("epoch", "loss", "class_loss", "box_loss")} for row in rows]


@pytest.fixture(scope="module")
def whole(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("whole")
    with one_thread():
        assert train.main(arguments(scenes, output)) == 0
    return output


def test_a_killed_run_goes_on_to_the_same_losses_and_weights(
    scenes: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    output = tmp_path / "run"
    codes: list[int | None] = []
    seen: list[int] = []
    # As where the power goes, and as where a scheduler wants the machine back.
    for extra, number in (("", signal.SIGKILL), ("--resume", signal.SIGTERM)):
        with subprocess.Popen(
            command(scenes, output, extra), env=environment, stderr=subprocess.PIPE, text=True
        ) as process:
            file = output / "resume.safetensors"
            first = file.stat().st_mtime_ns if file.exists() else 0
            changes = 0
            while process.poll() is None and changes < 3:
                now = file.stat().st_mtime_ns if file.exists() else 0
                changes, first = changes + (now != first), now
                time.sleep(0.01)
            process.send_signal(number)
            said = process.communicate()[1]
            codes.append(process.returncode)
            seen.append(changes)
    assert codes == [-signal.SIGKILL, TERMINATED], seen
    assert "the same training with --resume goes on from the last checkpoint" in said and "Traceback" not in said
    with one_thread():
        assert train.main(arguments(scenes, output, "--resume")) == 0
    assert "going on at epoch" in capsys.readouterr().err
    assert losses_of(output) == losses_of(whole)
    ours, theirs = load_file(output / "last.safetensors"), load_file(whole / "last.safetensors")
    assert all((ours[name] == theirs[name]).all() for name in theirs)
    # Whatever was being written when the process died stands under a temporary name only.
    load_network(open_checkpoint(output / "best.safetensors"))


def test_a_finished_run_resumes_to_itself(scenes: Path, whole: Path, capsys: pytest.CaptureFixture[str]):
    before = (whole / "best.safetensors").read_bytes()
    assert train.main(arguments(scenes, whole, "--resume")) == 0
    assert (whole / "best.safetensors").read_bytes() == before


def test_a_new_run_does_not_overwrite_an_unfinished_one(
    scenes: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    loaded = load_progress(whole)
    assert loaded is not None
    progress, identity, tensors, numbers = loaded
    save_progress(tmp_path, replace(progress, epoch=2), identity, tensors, numbers)
    before = (tmp_path / "resume.safetensors").read_bytes()
    assert train.main(arguments(scenes, tmp_path, "--seed 5")) == 2
    assert "after 2 of 3 epochs" in (said := capsys.readouterr().err) and "give --resume" in said
    assert (tmp_path / "resume.safetensors").read_bytes() == before


@pytest.mark.parametrize(
    ("extra", "said"),
    [
        ("--learning-rate 0.1", "--learning-rate 0.001 -> 0.1"),
        ("--seed 3 --flip both", "--flip horizontal -> both"),
        ("--model tf_efficientdet_lite1", "another model"),
    ],
)
def test_resuming_with_other_options_is_refused(
    extra: str, said: str, scenes: Path, whole: Path, capsys: pytest.CaptureFixture[str]
):
    assert train.main(arguments(scenes, whole, f"--resume {extra}")) == 2
    assert said in capsys.readouterr().err


def test_a_damaged_checkpoint_is_not_resumed_from(
    scenes: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    content = bytearray((whole / "resume.safetensors").read_bytes())
    content[-100] ^= 1
    (tmp_path / "resume.safetensors").write_bytes(content)
    assert train.main(arguments(scenes, tmp_path, "--resume")) == 2
    assert "is damaged" in capsys.readouterr().err


# A thread of gloo that outlives main may abort the process when the interpreter ends; seen once in some tens of runs.
TRAIN_AND_LOOK = """
import contextlib
import sys
from pathlib import Path
from edge_effdet import train

code = train.main()
left = []
for file in Path("/proc/self/task").glob("*/comm"):
    with contextlib.suppress(OSError):  # it ended meanwhile
        left += [name for name in [file.read_text().strip()] if "gloo" in name]
sys.exit(f"threads left: {left}" if left else code)
"""


@pytest.mark.slow
def test_two_processes_train_as_one_does(scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """The same global batch, so the same losses but for the order of sums.

    The first step's loss is the same to rounding. AdamW's first updates are learning rate times the sign of the gradient,
    so rounding moves weights whose gradient is near zero by the learning rate in one run and against it in the other: later
    losses differ by parts in a thousand, and by no more than that.
    """
    # All twelve images in one batch: the first row is the first step.
    extra = "--epochs 2 --batch-size 12"
    with one_thread():
        assert train.main(arguments(scenes, tmp_path / "one", extra)) == 0
    script = tmp_path / "train_and_look.py"
    script.write_text(TRAIN_AND_LOOK)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    done = subprocess.run(
        [*launcher, str(script), *arguments(scenes, tmp_path / "two", extra)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    # Of two processes only the first speaks.
    for printed in (capsys.readouterr().out, done.stdout):
        assert len(printed.strip().splitlines()) == 1, printed
    one, two = losses_of(tmp_path / "one"), losses_of(tmp_path / "two")
    assert two[0]["loss"] == pytest.approx(one[0]["loss"], rel=1e-5)
    for alone, together in zip(one, two, strict=True):
        assert together["loss"] == pytest.approx(alone["loss"], rel=5e-3)


def test_a_full_disk_ends_with_one_sentence_and_whole_files(
    scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    # A limit on the size of files is what a full disk looks like to a process: the checkpoint has 13 MB, the state 50.
    usual, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000_000, most))
    try:
        assert train.main(arguments(scenes, tmp_path / "run")) == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (usual, most))
        signal.signal(signal.SIGXFSZ, handler)
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("error: Writing") and "is the disk full?" in last
    assert not [path for path in (tmp_path / "run").iterdir() if path.name.startswith(".")]
    assert not (tmp_path / "run" / "resume.safetensors").exists()


def test_a_batch_that_does_not_fit_is_refused_with_one_that_does(
    scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    # As if another program held the memory: what is free is measured, so a machine of any size comes here.
    monkeypatch.setattr("edge_effdet.training.memory.free_memory", lambda: 60_000_000)
    assert train.main(arguments(scenes, tmp_path / "run", "--batch-size 12")) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert "A batch of 12 at 64x64 does not fit into memory" in error and "--batch-size" in error
    assert not list(tmp_path.rglob("*.safetensors"))


def test_a_killed_loader_ends_in_one_sentence(scenes: Path, tmp_path: Path):
    output = tmp_path / "run"
    with subprocess.Popen(
        command(scenes, output, "--epochs 200 --workers 1"), stderr=subprocess.PIPE, text=True
    ) as process:
        children: list[str] = []
        while not children and process.poll() is None:
            time.sleep(0.05)
            if (output / "metrics.jsonl").exists():
                children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        for child in children:
            os.kill(int(child), signal.SIGKILL)
        _, said = process.communicate(timeout=300)
    assert process.returncode == 2, said
    assert said.strip().splitlines()[-1].startswith("error: A process that loads images ended by itself"), said


def test_a_dead_loader_is_found_behind_a_librarys_error():
    """torch speaks from a signal handler, so a library may have caught it and raised an error of its own."""
    told = "DataLoader worker (pid 1) is killed by signal: Killed."
    try:
        try:
            raise RuntimeError(told)
        except RuntimeError as error:
            raise ValueError("too many values to unpack") from error
    except ValueError as error:
        assert str(find_dead_loader(error)) == told
    assert find_dead_loader(ValueError("too many values to unpack")) is None
