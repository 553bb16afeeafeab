"""The command line's contract: help, exit codes, one JSON line, one sentence on stderr."""

from __future__ import annotations

import argparse
import importlib
import io
import json
import logging
import os
import re
import shlex
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from google.protobuf.message import EncodeError
from PIL import Image

import edge_effdet
from edge_effdet import __main__ as program
from edge_effdet import cli
from edge_effdet.artifacts import ModelSpec, Size, engine_json_path, file_sha256, write_json
from edge_effdet.artifacts.record import Golden, record_to_json
from edge_effdet.backends import base
from edge_effdet.backends.fingerprint import machine_fingerprint
from edge_effdet.cli import (
    INTERRUPTED,
    Result,
    add_options,
    make_parser,
    options_from,
    parse_size,
    progress,
    run_verb,
    table,
)
from edge_effdet.errors import (
    AccuracyGateFailed,
    BackendUnavailable,
    CheckpointError,
    DataError,
    EdgeEffDetError,
    EngineError,
    GraphError,
    InputError,
    MissingDependency,
    UsageError,
)
from edge_effdet.options import option
from tests.records import make_record

VERBS = ("data", "train", "predict", "export", "quantize", "build_engine", "detect", "evaluate")


@pytest.fixture(autouse=True)
def restored_logging():
    """``run_verb`` sets up logging for a process of its own."""
    root, own = logging.getLogger(), logging.getLogger("edge_effdet")
    handlers, level, own_level = root.handlers[:], root.level, own.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    own.setLevel(own_level)


@pytest.fixture
def run(capsys):
    """Run a stage, or a verb by its name, as a process would; gives (exit code, stdout, stderr)."""

    def run_here(stage, *argv):
        if callable(stage):
            code = run_verb(make_parser("test", "Test.", "python -m edge_effdet.test"), stage, argv)
        else:
            code = importlib.import_module(program.module_name(stage)).main([str(item) for item in argv])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run_here


@pytest.fixture
def tiny_engine(tmp_path):
    """An engine for onnxruntime that finds one disc in the upper left quarter of any picture."""
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    helper, types = onnx.helper, onnx.TensorProto
    found = {
        "boxes": (types.FLOAT, np.array([[[0, 0, 32, 32], [0, 0, 30, 32]]], np.float32)),
        "scores": (types.FLOAT, np.array([[0.9, 0.6]], np.float32)),
        "class_ids": (types.INT32, np.array([[1, 1]], np.int32)),
    }
    graph = helper.make_graph(
        [
            helper.make_node("Constant", [], [name], value=onnx.numpy_helper.from_array(array))
            for name, (_, array) in found.items()
        ],
        "tiny",
        [helper.make_tensor_value_info("images", types.UINT8, [1, 3, 64, 64])],
        [helper.make_tensor_value_info(name, kind, array.shape) for name, (kind, array) in found.items()],
    )
    path = tmp_path / "engine" / "tiny.onnx"
    path.parent.mkdir()
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
    describe(path)
    return path


def describe(path, **changes):
    record = make_record(
        spec=ModelSpec("tiny", (64, 64), ("bar", "disc"), (1, 2)),
        engine_sha256=file_sha256(path),
        golden=Golden(kind="none", fingerprint=machine_fingerprint("onnxruntime")),
        **changes,
    )
    write_json(engine_json_path(path), record_to_json(record))


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "photo.png"
    Image.fromarray(np.zeros((50, 100, 3), np.uint8)).save(path)
    return path


def test_the_verbs_are_the_documented_ones():
    assert set(VERBS) <= set(program.VERBS)
    for verb in program.VERBS:
        assert callable(importlib.import_module(program.module_name(verb)).main)


@pytest.mark.parametrize("verb", VERBS)
def test_help_ends_with_an_example(verb, capsys):
    with pytest.raises(SystemExit) as caught:
        importlib.import_module(program.module_name(verb)).main(["--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    assert f"usage: python -m edge_effdet.{verb}" in text
    assert f"example:\n  python -m edge_effdet.{verb} " in text
    assert "--json" in text


@pytest.mark.parametrize("verb", VERBS)
def test_the_example_of_the_help_can_be_parsed(verb):
    parser = importlib.import_module(program.module_name(verb)).make_argument_parser()
    example = parser.epilog.split("example:\n")[1].replace("\\\n", " ")
    parser.parse_args(shlex.split(example)[3:])


@pytest.mark.parametrize("verb", VERBS)
def test_an_unknown_flag_is_bad_usage(verb, capsys):
    with pytest.raises(SystemExit) as caught:
        importlib.import_module(program.module_name(verb)).main(["--no-such-flag"])
    assert caught.value.code == 2
    said = capsys.readouterr().err
    # Where a verb wants other arguments, argparse names those first.
    assert re.fullmatch(
        rf"error: (the following arguments|unrecognized arguments|one of).*; see python -m edge_effdet\.{verb}\b.* --help\n",
        said,
    )


def test_the_flag_that_was_meant_is_named(capsys):
    with pytest.raises(SystemExit) as caught:
        program.main(["build_engine", "--int8", "--calibration-dat", "bccd", "--outptu=x"])
    assert caught.value.code == 2
    said = capsys.readouterr().err
    assert said == (
        "error: unrecognized arguments: --outptu=x (did you mean --output?); see python -m edge_effdet.build_engine --help\n"
    )


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
def test_without_a_verb_they_are_listed(arguments, capsys):
    assert program.main(arguments) == 0
    text = capsys.readouterr().out
    assert all(verb in text for verb in program.VERBS)


@pytest.mark.parametrize(
    ("given", "nearest"),
    [("evalute", "evaluate"), ("build-engin", "build_engine"), ("__help", "--help"), ("_h", "-h"), ("--verson", "--version")],
)  # fmt: skip
def test_an_unknown_verb_is_named_with_the_nearest(given, nearest, capsys):
    assert program.main([given]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"error: edge-effdet has no verb '{given}'; the nearest that it has is {nearest}, ")
    assert captured.err.endswith(".\n") and captured.err.count("\n") == 1


def test_any_unknown_verb_gets_one_sentence(capsys):
    for given in ("", "paint", "日本", "x" * 500):
        assert program.main([given]) == 2
        captured = capsys.readouterr()
        assert (captured.out, captured.err.count("\n")) == ("", 1)
        assert repr(given) in captured.err


def test_the_program_prints_its_version(capsys):
    assert program.main(["--version"]) == 0
    assert capsys.readouterr() == (f"edge-effdet {edge_effdet.__version__}\n", "")


@pytest.mark.parametrize("verb", [*VERBS, "verify"])
def test_every_verb_prints_the_version(verb, capsys):
    # Required flags are not asked for.
    with pytest.raises(SystemExit) as caught:
        importlib.import_module(program.module_name(verb)).main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr() == (f"edge-effdet {edge_effdet.__version__}\n", "")


def test_a_verb_may_be_written_with_a_hyphen(capsys):
    with pytest.raises(SystemExit) as caught:
        program.main(["build-engine", "--help"])
    assert caught.value.code == 0


@pytest.mark.parametrize(
    ("arguments", "text"), [([], "usage:"), (["detect", "--help"], "usage:"), (["--version"], "edge-effdet ")]
)
def test_the_program_as_a_process(arguments, text):
    done = subprocess.run([sys.executable, "-m", "edge_effdet", *arguments], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(text)


def test_a_result_is_text_for_people_and_one_line_for_machines(run):
    def stage(arguments):
        return Result("two\nlines", {"AP": 0.5, "name": "bär"})

    assert run(stage) == (0, "two\nlines\n", "")
    code, out, err = run(stage, "--json")
    assert (code, err, out.count("\n")) == (0, "", 1)
    assert json.loads(out) == {"AP": 0.5, "name": "bär"}


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (UsageError("a."), 2),
        (InputError("a."), 2),
        (DataError("a."), 2),
        (CheckpointError("a."), 2),
        (GraphError("a."), 2),
        (EngineError("a."), 2),
        (EdgeEffDetError("a."), 2),
        (MissingDependency("torch", "train", "to train"), 3),
        (BackendUnavailable("a."), 3),
        (AccuracyGateFailed("a."), 4),
    ],
)
def test_each_error_has_its_exit_code_and_one_line_on_stderr(run, error, code):
    def stage(arguments):
        raise error

    assert run(stage) == (code, "", f"error: {error}\n")
    with_traceback = run(stage, "--debug")
    assert with_traceback[:2] == (code, "") and with_traceback[2].startswith("Traceback ")
    assert with_traceback[2].endswith(f"\nerror: {error}\n")


def test_what_is_not_ours_is_not_hidden(run):
    def stage(arguments):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run(stage)


def test_an_interruption_has_its_exit_code(run):
    def stage(arguments):
        raise KeyboardInterrupt

    code, out, err = run(stage)
    assert (code, out) == (INTERRUPTED, "")
    assert "interrupted" in err
    assert INTERRUPTED == 130


@pytest.mark.parametrize(("number", "expected"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_process_ends_with_its_code_and_leaves_no_half_file(tmp_path, number, expected):
    """What Ctrl-C sends, and what timeout, Slurm and Kubernetes do, to a stage that is writing."""
    code = (
        # A shell that starts the tests in its background lets them ignore Ctrl-C, and so their children.
        "import signal, sys, time; from pathlib import Path\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from edge_effdet.artifacts import atomic_output\n"
        "from edge_effdet.cli import make_parser, run_verb\n"
        "def stage(arguments):\n"
        "    with atomic_output(Path(sys.argv[1])) as temporary:\n"
        "        temporary.write_text('half'); print('ready', flush=True); time.sleep(60)\n"
        "sys.exit(run_verb(make_parser('test', 'Test.', 'none'), stage, []))\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "file")], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    _, err = process.communicate(timeout=30)
    assert process.returncode == expected
    assert err.startswith("interrupted")
    assert list(tmp_path.iterdir()) == []


def test_a_reader_that_leaves_early_is_no_error():
    """As ``… | head -1`` does."""
    code = (
        "import sys; from edge_effdet.cli import Result, make_parser, run_verb\n"
        "sys.exit(run_verb(make_parser('test', 'Test.', 'none'), lambda _: Result('line\\n' * 100000), []))\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process.stdout.readline()
    process.stdout.close()
    err = process.stderr.read()
    assert (process.wait(timeout=30), err) == (0, "")
    process.stderr.close()


@pytest.mark.parametrize(
    ("verb", "arguments", "message"),
    [
        ("detect", ("--engine", "absent.onnx", "--source", "."), "There is no engine at absent.onnx"),
        ("evaluate", ("--engine", "absent.onnx", "--data", "."), "There is no engine at absent.onnx"),
        ("quantize", ("--onnx", "absent.onnx", "--fp16", "--output", "o.onnx"), "There is no ONNX file at absent.onnx"),
        ("train", ("--data", "absent", "--output", "o"), "There is no data at absent"),
        ("export", ("--output", "o.onnx"), "Nothing to export"),
        ("export", ("--checkpoint", "absent.safetensors", "--output", "o.onnx"), "There is no checkpoint at"),
        ("export", ("--model", "yolo", "--output", "o.onnx"), "There is no model named 'yolo'"),
        ("build_engine", ("--checkpoint", "absent.safetensors", "--fp32", "--output", "o"), "There is no checkpoint at"),
    ],
)  # fmt: skip
def test_bad_input_is_one_sentence_and_exit_code_2(run, tmp_path, monkeypatch, verb, arguments, message):
    monkeypatch.chdir(tmp_path)
    code, out, err = run(verb, *arguments)
    assert (code, out) == (2, "")
    last = err.splitlines()[-1]
    assert last.startswith("error: ")
    assert message in last
    assert last.endswith(".")
    assert "Traceback" not in err
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_detect_prints_a_table_or_one_json_line(run, tiny_engine, picture):
    code, out, err = run("detect", "--engine", tiny_engine, "--source", picture)
    assert (code, err) == (0, "")
    assert "photo.png" in out
    assert "1 disc" in out
    code, out, _ = run("detect", "--engine", tiny_engine, "--source", picture, "--json")
    assert (code, out.count("\n")) == (0, 1)
    data = json.loads(out)
    assert data["engine_sha256"] == file_sha256(tiny_engine)
    expected = {"box": [0.0, 0.0, 50.0, 50.0], "score": 0.9, "class": "disc", "class_id": 1, "category_id": 2}
    assert data["images"] == [{"image": str(picture), "detections": [expected]}]


def test_evaluate_prints_a_table_or_one_json_line(run, tiny_engine, tiny_voc):
    code, out, _ = run("evaluate", "--engine", tiny_engine, "--data", tiny_voc)
    assert code == 0
    assert "AP_medium" in out
    code, out, err = run("evaluate", "--engine", tiny_engine, "--data", tiny_voc, "--json")
    assert (code, out.count("\n")) == (0, 1)
    data = json.loads(out)
    assert {"AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large", "images", "engine_sha256"} <= set(data)
    assert (data["images"], data["split"]) == (2, "test")
    assert "split test" in err
    assert "NaN" not in out


def test_an_engine_that_was_changed_is_refused(run, tiny_engine, picture):
    tiny_engine.write_bytes(tiny_engine.read_bytes() + b"\0")
    code, _, err = run("detect", "--engine", tiny_engine, "--source", picture)
    assert code == 2
    assert "is not the file that tiny.onnx.json describes" in err


def test_a_backend_that_cannot_work_here_is_exit_code_3_with_the_fix(run, tiny_engine, picture):
    if isinstance(base.get_backend("tensorrt").probe(), base.Available):
        pytest.skip("TensorRT works on this machine")
    describe(tiny_engine, backend="tensorrt")
    code, out, err = run("detect", "--engine", tiny_engine, "--source", picture)
    assert (code, out) == (3, "")
    assert err.startswith("error: The backend tensorrt is not available: ")
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--score-threshold", "1.5"), "--score-threshold 1.5 is not between 0 and 1"),
        (("--source", "absent"), "There is no image or folder at absent"),
        (("--source", "{empty}"), "holds no images"),
        (("--source", "{words}"), "not an image"),
    ],
)
def test_detect_refuses_what_it_cannot_use(run, tiny_engine, picture, tmp_path, arguments, message):
    (tmp_path / "empty").mkdir()
    (tmp_path / "words.png").write_text("words")
    arguments = [item.format(empty=tmp_path / "empty", words=tmp_path / "words.png") for item in arguments]
    code, _, err = run("detect", "--engine", tiny_engine, "--source", picture, *arguments)
    assert code == 2
    assert message in err


@dataclass(frozen=True, slots=True)
class Options:
    """What the tests ask for. The rest is not shown."""

    folder: Path = option(help="required")
    learning_rate: float = option(1e-3, help="a number")
    image_size: Size | None = option(None, help="N or HxW")
    pictures: int = option(3, help="a count")
    flip: bool = option(False, help="a switch")
    mirror: bool = option(True, help="another switch")
    pattern: str = option("", help="a text")
    method: str = option("max", help="a choice", choices=("max", "entropy"))
    hidden: tuple[str, ...] = ("not", "a", "flag")


def parse(*argv):
    parser = argparse.ArgumentParser()
    add_options(parser, Options)
    return options_from(Options, parser.parse_args(["--folder", "f", *argv]))


def test_flags_come_from_a_dataclass():
    assert parse() == Options(Path("f"))
    given = parse(
        *("--learning-rate", "0.1", "--image-size", "64x96", "--pictures", "5", "--flip", "--method", "entropy")
    )
    assert given == Options(Path("f"), 0.1, (64, 96), 5, True, True, "", "entropy")
    assert parse("--image-size", "320").image_size == (320, 320)
    assert parse("--no-flip").flip is False


@pytest.mark.parametrize(
    "argv", [("--pictures", "x"), ("--image-size", "64*96"), ("--method", "mean"), ("--hidden", "x")]
)
def test_a_flag_of_another_kind_is_bad_usage(argv, capsys):
    with pytest.raises(SystemExit) as caught:
        parse(*argv)
    assert caught.value.code == 2
    assert argv[0] in capsys.readouterr().err


def test_a_required_flag_is_required_and_defaults_are_shown(capsys):
    parser = argparse.ArgumentParser()
    add_options(parser, Options)
    with pytest.raises(SystemExit):
        parser.parse_args([])
    assert "--folder" in capsys.readouterr().err
    text = parser.format_help()
    assert "(default: 0.001)" in text
    assert "hidden" not in text


def help_of(*classes, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    parser = argparse.ArgumentParser()
    add_options(parser, *classes)
    return [line.strip() for line in parser.format_help().splitlines()]


def test_switches_show_their_default_and_an_empty_default_is_not_shown(monkeypatch):
    text = " ".join(help_of(Options, monkeypatch=monkeypatch))
    for shown in (
        r"--flip, --no-flip +a switch \(default: off\)",
        r"--mirror, --no-mirror +another switch \(default: on\)",
        r"--pattern PATTERN +a text +--method",
    ):
        assert re.search(shown, text), shown


@dataclass(frozen=True)
class OtherOptions:
    other: int = option(1, help="a number without a docstring around it")


@dataclass(frozen=True)
class BothOptions(OtherOptions, Options):
    """What gathers two groups."""

    folder: Path | None = option(None, help="changed here, and still of its group")
    own: int = option(2, help="a number of neither")


def test_the_flags_of_a_dataclass_stand_in_a_group_named_after_it(monkeypatch):
    lines = help_of(BothOptions, monkeypatch=monkeypatch)
    heads = ["options:", "Other options:", "What the tests ask for:"]
    starts = [lines.index(head) for head in heads]
    assert starts == sorted(starts)
    plain, other, rest = (lines[start + 1 : end] for start, end in zip(starts, [*starts[1:], len(lines)], strict=True))
    assert [line.split()[0] for line in plain if line] == ["-h,", "--own"]
    assert [line.split()[0] for line in other if line] == ["--other"]
    assert [line.split()[0] for line in rest][:2] == ["--folder", "--learning-rate"]
    assert "changed here" in rest[0]
    assert sum(line.startswith("--") for line in rest) == 8


@pytest.mark.parametrize("verb", VERBS)
def test_no_help_of_a_verb_shows_an_empty_default(verb):
    text = importlib.import_module(program.module_name(verb)).make_argument_parser().format_help()
    assert "(default: )" not in text and "(default: True)" not in text and "(default: False)" not in text
    assert "\nHow " in text or "\nWhat " in text or "\nWhich " in text


@pytest.mark.parametrize(("text", "size"), [("320", (320, 320)), ("384x640", (384, 640)), ("384X640", (384, 640))])
def test_a_size(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "x", "0", "0x64", "64x", "-64", "64x64x3", "6.4", "²", "64 x 64"])
def test_what_is_no_size_is_refused(text):
    with pytest.raises(UsageError, match="neither N nor HxW"):
        parse_size(text)


def test_a_table_is_aligned_with_numbers_to_the_right():
    assert table([("image", "objects"), ("a.jpg", "3"), ("long.jpg", "12")]) == (
        "image     objects\n--------  -------\na.jpg           3\nlong.jpg       12"
    )
    assert table([("only", "header")]).splitlines()[0] == "only  header"


NAMES = ('鸟 "groß"\t🐦', "red\nblood", "a\x1b[31mb\u2028c", os.fsdecode(b"\xb2\xe2.jpg"))


def test_a_row_of_a_table_is_one_line_whatever_is_in_it():
    text = table([("class", "boxes"), *((name, "1") for name in NAMES)])
    assert [line.rsplit(maxsplit=1)[0].rstrip() for line in text.splitlines()[2:]] == [
        '鸟 "groß"\\t🐦',
        "red\\nblood",
        "a\\x1b[31mb\\u2028c",
        "\\xb2\\xe2.jpg",
    ]


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-8"])
@pytest.mark.parametrize("as_json", [False, True])
def test_anything_is_printed_on_a_terminal_of_any_encoding(monkeypatch, encoding, as_json):
    streams = [io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="strict") for _ in range(2)]
    monkeypatch.setattr(sys, "stdout", streams[0])
    monkeypatch.setattr(sys, "stderr", streams[1])

    def stage(arguments):
        logging.getLogger("edge_effdet.test").warning("%s is skipped", NAMES[-1])
        rows = [("class", "boxes"), *((name, "1") for name in NAMES)]
        return Result(table(rows), {"classes": NAMES}, DataError(f"{NAMES[-1]} and {NAMES[0]} failed."))

    parser = make_parser("test", "Prüft.", "python -m edge_effdet.test")
    assert run_verb(parser, stage, ["--json"] if as_json else []) == 2
    out, err = (stream.buffer.getvalue().decode(encoding) for stream in streams)
    assert out.count("\n") == (1 if as_json else 2 + len(NAMES))
    if as_json:
        assert json.loads(out) == {"classes": [*NAMES[:3], "\\xb2\\xe2.jpg"]}
    else:
        assert "\\xb2\\xe2.jpg" in out
        assert ("鸟" if encoding == "utf-8" else "\\u9e1f") in out
    assert err.splitlines()[0] == "\\xb2\\xe2.jpg is skipped"
    assert err.splitlines()[1].startswith("error: \\xb2\\xe2.jpg and ")
    # The program that called it has its streams as they were.
    assert [stream.errors for stream in streams] == ["strict"] * 2


@pytest.mark.parametrize("verb", VERBS)
def test_the_help_is_printed_on_a_terminal_of_any_encoding(verb, monkeypatch):
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii", errors="strict")
    monkeypatch.setattr(sys, "stdout", stream)
    with pytest.raises(SystemExit) as caught:
        importlib.import_module(program.module_name(verb)).main(["--help"])
    stream.flush()
    assert caught.value.code == 0
    assert b"usage: " in stream.buffer.getvalue()


def test_progress_passes_everything_on_and_is_silent_without_a_terminal(capsys):
    assert list(progress(range(3), 3, "counting")) == [0, 1, 2]
    assert capsys.readouterr() == ("", "")


def test_progress_works_without_tqdm(monkeypatch):
    monkeypatch.setitem(sys.modules, "tqdm", None)
    assert list(progress([1, 2], 2, "counting")) == [1, 2]


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (PermissionError(13, "Permission denied", "a.jpg"), r"a\.jpg cannot be used \(Permission denied\)"),
        (OSError(28, "No space left on device"), r"refuses something \(No space left on device\); free what is short"),
        (OSError(28, "No space left on device", "a.jpg"), r"a\.jpg cannot be used \(No space.*\); free what is short"),
        (
            OSError(36, "File name too long", "b" * 300),
            r"b{300} cannot be used \(File name too long\); see whether the path",
        ),
        (OSError(5, "Input/output error", "a.jpg"), r"a\.jpg cannot be used \(Input/output error\)\.$"),
        (ConnectionRefusedError(111, "Connection refused"), r"refuses something \(Connection refused\)\.$"),
        # Of a socket or a process, and not of what is printed.
        (BrokenPipeError(32, "Broken pipe"), r"refuses something \(Broken pipe\)\.$"),
        (MemoryError(), "not enough memory"),
        (RuntimeError("could not create a primitive"), "not enough memory"),
        (RuntimeError("std::bad_alloc"), "not enough memory"),
        (EncodeError("Failed to serialize proto"), "not enough memory"),
    ],
)
def test_what_the_system_refuses_is_a_sentence_and_not_a_traceback(run, error, said):
    def stage(arguments):
        raise error

    code, out, err = run(stage)
    assert (code, out) == (2, "")
    assert re.search(said, err) and err.startswith("error: ") and err.count("\n") == 1 and err.endswith(".\n")


def test_a_nested_file_is_a_sentence_and_what_else_is_too_deep_a_mistake(run):
    code, _, err = run(lambda arguments: json.loads("[" * 200_000))
    assert code == 2 and "lists within lists" in err

    def deep(arguments):
        return deep(arguments)

    with pytest.raises(RecursionError):
        run(deep)


def test_a_runtime_that_fails_is_a_sentence(run):
    ort = pytest.importorskip("onnxruntime")

    def stage(arguments):
        ort.InferenceSession(b"words", providers=["CPUExecutionProvider"])

    code, _, err = run(stage)
    assert code == 2 and err.startswith("error: onnxruntime failed (") and err.count("\n") == 1


def test_a_mistake_of_our_own_keeps_its_traceback(run):
    with pytest.raises(KeyError):
        run(lambda arguments: {}["missing"])


@pytest.mark.parametrize("verb", ["detect", "evaluate"])
def test_a_path_that_is_too_long_is_named(run, verb):
    other = ("--source", "x") if verb == "detect" else ("--data", "x")
    code, _, err = run(verb, "--engine", "a" * 5000, *other)
    assert code == 2 and err.startswith("error: ") and "Traceback" not in err


def test_a_name_with_control_characters_does_nothing_to_a_terminal(run, tiny_engine, tmp_path):
    path = tmp_path / "a\x1b[31m\x9bred\r.jpg"
    path.write_bytes(b"no picture")
    code, out, err = run("detect", "--engine", tiny_engine, "--source", path)
    assert code == 2 and r"\x1b[31m" in err and r"\x9b" in err
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", out + err)


def test_an_error_is_one_line_whatever_is_in_a_name(run):
    name = "a\nerror: b\x1b[2K\u2028\u202egpj.jpg"

    def stage(arguments):
        logging.getLogger("edge_effdet.test").warning("%s is skipped", name)
        raise DataError(f"{name} is no image.")

    shown = r"a\nerror: b\x1b[2K\u2028\u202egpj.jpg"
    assert run(stage) == (2, "", f"{shown} is skipped\nerror: {shown} is no image.\n")


def test_an_argument_that_is_refused_does_nothing_to_a_terminal(capsys):
    with pytest.raises(SystemExit):
        importlib.import_module(program.module_name("detect")).main(
            ["--engine", "a", "--source", "b", "c\x1b[31m\nd.jpg"]
        )
    assert r"unrecognized arguments: c\x1b[31m\nd.jpg" in capsys.readouterr().err


def shell(command: str, tiny_engine, picture) -> subprocess.CompletedProcess:
    detect = f"{shlex.quote(sys.executable)} -m edge_effdet.detect --engine {tiny_engine} --source {picture}"
    return subprocess.run(
        ["sh", "-c", command.format(detect)], capture_output=True, text=True, timeout=120, check=False
    )


@pytest.mark.parametrize("asked", ["--help", "--version", "detect --help", "detect --version"])
@pytest.mark.parametrize(("where", "code"), [(">/dev/full", 2), ("| true", 0)])
def test_help_that_cannot_be_printed_is_as_results_are(asked, where, code):
    # A shell gives the code of the last command of a pipe, so it is printed.
    command = f"(sleep 0.2; {shlex.quote(sys.executable)} -m edge_effdet {asked}; echo $? >&2) {where}"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False)
    said = "error: The results cannot be printed (No space left on device); print them where there is room.\n"
    assert done.stderr == f"{said if code else ''}{code}\n"


@pytest.mark.parametrize("flag", ["", "--json"])
def test_results_that_cannot_be_printed_are_an_error(tiny_engine, picture, flag):
    done = shell(f"{{}} {flag} >/dev/full", tiny_engine, picture)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: The results cannot be printed (No space left on device)")
    assert "Exception ignored" not in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("closed", "code"), [("2>&-", 0), ("</dev/null 2>/dev/full", 0), (">&-", 0), ("<&- 2>&-", 0), ("<&- >&- 2>&-", 0)]
)
def test_a_closed_stream_is_no_error(tiny_engine, picture, closed, code):
    done = shell(f"{{}} {closed}", tiny_engine, picture)
    assert done.returncode == code, done.stderr
    assert ("1 disc" in done.stdout) == (">&-" not in closed.replace("2>&-", ""))
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("closed", ["2>&-", "2>/dev/full"])
def test_an_error_that_nobody_can_read_keeps_its_code(tiny_engine, tmp_path, closed):
    done = shell(f"{{}} {closed}", tiny_engine, tmp_path / "absent.jpg")
    assert (done.returncode, done.stdout) == (2, "")


@pytest.mark.parametrize("name", ["../evil", "a/b", "/tmp/evil", "..", ".", ""])
def test_a_build_stays_in_its_folder(name):
    from edge_effdet.building.options import BuildConfig

    with pytest.raises(UsageError, match=r"`name` .* outside of `output`"):
        BuildConfig(name=name)
    assert BuildConfig(name="mine.v2").name == "mine.v2"


def test_a_log_that_cannot_be_written_leaves_nothing_that_fails_later():
    """What starts a process writes stderr out first, and a full disk would end it."""
    code = (
        "import logging, sys\nfrom edge_effdet.cli import Result, make_parser, run_verb\n"
        "def stage(_):\n    logging.getLogger('edge_effdet').warning('a line')\n    sys.stderr.flush()\n    return Result('done')\n"
        "sys.exit(run_verb(make_parser('x', 'X.', ''), stage, []))\n"
    )
    with Path("/dev/full").open("w") as full:
        done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=full, text=True)
    assert (done.returncode, done.stdout) == (0, "done\n")


def test_words_about_memory_in_a_mistake_of_this_program_hide_no_traceback():
    assert cli._sentence_of(KeyError("bad_alloc")) is None
    assert cli._sentence_of(RuntimeError("bad_alloc")) is not None
