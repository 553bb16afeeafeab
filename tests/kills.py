"""Work on files that is killed by SIGKILL before one of its changes: ``python -m tests.kills WORK FOLDER``, with a name of ``WORKS``.

The process itself is never killed: it forks one for each kill, which saves the time that an interpreter takes to start.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edge_effdet.artifacts import (
    Engine,
    atomic_folder,
    file_sha256,
    load_engine,
    replace_engine,
    temporary_folder,
    write_text,
)
from tests.records import make_record, write_record

_CHANGES = (
    *("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.symlink", "os.truncate", "os.chmod"),
    *("os.fsync", "fcntl.flock"),
)

Decide = Callable[[int, str, tuple[Any, ...]], bool]
"""Whether to kill before a change: its number from 1 on, and the event and the arguments that Python tells its audit hooks."""


def killed(work: Callable[[], None], decide: Decide) -> bool:
    """Run some work in a process of its own; whether it was killed. Raises RuntimeError where it failed."""
    process = os.fork()
    if process == 0:
        try:
            _arm(decide)
            work()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(process, 0)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return True
    if status:
        raise RuntimeError("the work failed")
    return False


def _arm(decide: Decide) -> None:
    count = 0

    def note(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal count
        writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_ACCMODE | os.O_CREAT)
        if event in _CHANGES or writes:
            count += 1
            if decide(count, event, arguments):
                os.kill(os.getpid(), signal.SIGKILL)

    def fsync(handle: int) -> None:
        note("os.fsync", (handle,))
        real_fsync(handle)

    # Python tells no hook of it.
    real_fsync, os.fsync = os.fsync, fsync
    sys.addaudithook(note)


def kill_before_each_change(folder: Path, prepare: Callable[[Path], None], work: Callable[[Path], None]) -> None:
    """Do the same work in the folders 1, 2, 3 and so on, each time killed one change later, until it ends."""
    for number in range(1, 1000):
        root = folder / str(number)
        root.mkdir()
        prepare(root)
        if not killed(lambda root=root: work(root), lambda count, *_, number=number: count == number):
            return
    raise RuntimeError("the work never ends")


def write_engine(path: Path, content: bytes, target: str) -> Engine:
    """An engine of a content, without its record."""
    path.write_bytes(content)
    record = make_record(engine="x.onnx", engine_sha256=file_sha256(path), target=target)
    return Engine(path, record.spec, record.backend, record.precision, record.engine_sha256, record)


def put_engine(path: Path, content: bytes, target: str) -> None:
    """Put an engine where an earlier one may be, as a build does it."""
    with temporary_folder(path.parent) as aside:
        replace_engine(write_engine(aside / path.name, content, target), path)


def replace_engines(folder: Path) -> None:
    """The engine ``new.onnx`` of the folder replaces ``old.onnx`` of it."""
    old, new = ((folder / name).read_bytes() for name in ("old.onnx", "new.onnx"))
    kill_before_each_change(
        folder,
        lambda root: write_record(write_engine(root / "x.onnx", old, "old")),
        lambda root: put_engine(root / "x.onnx", new, "new"),
    )


def finish_engines(folder: Path) -> None:
    """A killed replacement, all but its last change, is finished by the next replacement, which is killed too."""
    old, new = ((folder / name).read_bytes() for name in ("old.onnx", "new.onnx"))

    def prepare(root: Path) -> None:
        write_record(write_engine(root / "x.onnx", old, "old"))

        def at_the_record(_: int, event: str, arguments: tuple[Any, ...]) -> bool:
            return event == "os.rename" and str(arguments[1]).endswith(".json")

        assert killed(lambda: put_engine(root / "x.onnx", new, "new"), at_the_record)

    kill_before_each_change(folder, prepare, lambda root: put_engine(root / "x.onnx", old, "newest"))


def write_outputs(folder: Path) -> None:
    """A file and a folder are written beside earlier ones, and something in the system's folder for temporary files."""
    # Python looks whether it can be written, by a file of its own.
    tempfile.gettempdir()

    def work(root: Path) -> None:
        with temporary_folder() as aside:
            (aside / "scratch").write_text("x")
            write_text(root / "file.txt", "new")
            with atomic_folder(root / "made") as made:
                (made / "part").write_text("new")

    kill_before_each_change(folder, lambda root: write_text(root / "file.txt", "old"), work)


def build_engines(folder: Path) -> None:
    """A build is killed before its engine gets its name, and another one before its record does. Prints what was then there, and after one more build."""
    import numpy as np
    import onnx
    from onnx import numpy_helper

    from edge_effdet import Detector
    from edge_effdet.building.engine import BuildJob, build_engine
    from edge_effdet.graph.model import load_graph
    from edge_effdet.quant.stage import QuantizeOptions
    from tests.unit.building.test_chain import save_detector

    graphs = [save_detector(folder)]
    for number in (1, 2):
        model = onnx.load(graphs[0].path)
        weight = model.graph.initializer[0]
        weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) + number, weight.name))
        onnx.save(model, folder / f"other-{number}.onnx")
        graphs.append(load_graph(folder / f"other-{number}.onnx"))
    output = folder / "engines"
    path = output / "tiny.fp32.onnx"

    def build(number: int) -> None:
        job = BuildJob(name="tiny", graph=graphs[number], output=output, golden="none")
        build_engine(job, "fp32", "onnxruntime", QuantizeOptions())

    def at(name: str) -> Decide:
        return lambda _, event, arguments: event == "os.rename" and Path(arguments[1]) == path.with_name(name)

    told = []
    for number, decide in ((0, None), (1, at(path.name)), (2, at(f"{path.name}.json")), (1, None)):
        assert killed(lambda number=number: build(number), decide or (lambda *_: False)) == (decide is not None)
        there = sorted(each.name for each in output.iterdir())
        # In a process of its own, because one that has run an engine has threads and should not fork.
        assert not killed(
            lambda: print(Detector.load(path)(np.zeros((16, 16, 3), np.uint8)).scores, file=sys.stderr),
            lambda *_: False,
        )
        engine = load_engine(path)
        told.append({"graph": [each.sha256 for each in graphs].index(engine.sha256), "there": there})
    print(json.dumps(told))


WORKS = {each.__name__: each for each in (replace_engines, finish_engines, write_outputs, build_engines)}

if __name__ == "__main__":
    WORKS[sys.argv[1]](Path(sys.argv[2]))
