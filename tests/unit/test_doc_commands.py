"""Each command that the documentation shows is one that the real parsers take: its options exist, and those that are required are there.

``tests/integration/test_readme.py`` runs the README's. What cannot be run here is marked (``tests/markdown.py``), and counted below.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import inspect
import io
import json
import re
import subprocess
import sys
from collections import Counter
from contextlib import redirect_stderr, redirect_stdout
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import tomllib

import edge_effdet
from edge_effdet.__main__ import VERBS, module_name
from tests.markdown import ROOT, SHELL, Block, pages, read_blocks, shell_commands

BLOCKS = [block for page in pages() for block in read_blocks(page)]
COMMANDS = [block for block in BLOCKS if block.language in SHELL]

NOT_RUN = {
    "it compiles for a minute": 1,
    "it downloads 340 MiB": 1,
    "it needs DeepStream": 4,
    "it needs Docker": 1,
    "it needs Slurm": 2,
    "it needs TensorRT": 1,
    "it needs TensorRT and its GPU": 1,
    "it needs a GPU": 2,
    "it needs a Jetson": 1,
    "it needs a bundle": 2,
    "it needs a camera": 1,
    "it needs a camera and a broker": 1,
    "it needs a certificate and a second machine": 1,
    "it needs an installation": 1,
    "it needs four GPUs": 1,
    "it needs several machines": 1,
    "it needs the service": 1,
    "it needs tritonserver": 1,
}
"""How many blocks are marked with each reason."""

DEVICE = re.compile(r"(\./|/opt/edge-effdet/\w+/)edge-effdet")
"""How the commands of a bundle and of an installation are started on a device."""


class Parsed(Exception):
    """Takes the place of what a command would do."""


@pytest.fixture(autouse=True)
def only_parse(monkeypatch: pytest.MonkeyPatch):
    """Lets every command end where it has read its arguments."""
    read = argparse.ArgumentParser.parse_args

    def stop(self: argparse.ArgumentParser, *given: Any) -> Any:
        read(self, *given)
        raise Parsed

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", stop)


def run_main(main: Any, arguments: list[str]) -> str:
    """What is wrong with the arguments of a command; nothing where its parser takes them."""
    said = io.StringIO()
    try:
        with redirect_stderr(said), redirect_stdout(io.StringIO()):
            if not inspect.signature(main).parameters:
                before, sys.argv = sys.argv, ["", *arguments]
                try:
                    code = main()
                finally:
                    sys.argv = before
            else:
                code = main(arguments)
    except Parsed:
        return ""
    except SystemExit as ended:
        code = ended.code
    return said.getvalue() or f"it ended with {code}" if code else ""


def run_module(module: str, arguments: list[str]) -> str:
    if (ROOT / Path(*module.split(".")) / "__main__.py").is_file():
        module += ".__main__"
    return run_main(importlib.import_module(module).main, arguments)


def run_make(arguments: list[str]) -> str:
    done = subprocess.run(["make", "-n", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stderr if done.returncode else ""


def install(arguments: list[str]) -> str:
    """What is wrong with ``pip install`` of ours: an extra that there is not."""
    known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    wanted = {
        extra
        for word in arguments
        for extra in re.findall(r"[\w-]+", "".join(re.findall(r"^(?:edge-effdet|\.)\[(.*)\]", word)))
    }
    return ", ".join(f"there is no extra {extra}" for extra in sorted(wanted - set(known)))


def judge(words: list[str], tmp_path: Path) -> str | None:
    """What is wrong with a command of ours; None for one of others."""
    first = words[0]
    if "-m" in words[1:] and words[words.index("-m") + 1].partition(".")[0] in ("edge_effdet", "benchmarks", "release"):
        start = words.index("-m") + 1
        return run_module(words[start], words[start + 1 :])
    if first == "edge-effdet":
        verb = words[1].replace("-", "_")
        return run_module(module_name(verb), words[2:]) if verb in VERBS else f"there is no verb {words[1]}"
    if DEVICE.fullmatch(first):
        device = importlib.import_module("edge_effdet.device.__main__")
        if words[1] not in device.VERBS:
            return f"there is no verb {words[1]}"
        start = ["--store", str(tmp_path)] if first.startswith("/opt") else []
        # The entry of a bundle knows its bundle, without which another parser would ask for one.
        if not start and words[1] == "install" and len(words) > 1:
            return run_main(device.main, [words[1], "bundle.tar.gz", *words[2:]])
        return run_main(device.main, [*start, *words[1:]])
    if first == "make":
        return run_make(words[1:])
    if words == [".", ".venv/bin/activate"]:
        return ""
    if words[:2] == ["pip", "install"]:
        return install(words[2:])
    if first in ("python", "python3", "sh") and (ROOT / words[1]).is_file():
        if words[1] == "benchmarks/gpu_check.sh":
            given = words[2:]
            if given[:1] == ["--wheels"]:
                given = given[2:]
            return run_module("benchmarks.gpu_check", given)
        return run_module(words[1].removesuffix(".py").replace("/", "."), words[2:]) if first != "sh" else ""
    return None


@pytest.mark.parametrize("block", COMMANDS, ids=str)
def test_commands_are_understood(block: Block, tmp_path: Path):
    found = [(words, judge(words, tmp_path)) for words in shell_commands(block.text)]
    assert found, "there is no command in it"
    if block.not_run:
        # A makefile of another folder than this one.
        found = [(words, None if words[0] == "make" else problem) for words, problem in found]
    assert [(" ".join(words), problem) for words, problem in found if problem] == []
    foreign = [" ".join(words) for words, problem in found if problem is None]
    assert foreign == [] or block.not_run, "commands of other programs stand in a block that is not marked"


def test_what_is_not_run_is_counted():
    assert Counter(block.not_run for block in BLOCKS if block.not_run) == NOT_RUN
    assert all(block.language in SHELL for block in BLOCKS if block.not_run)


def test_commands_stand_in_blocks_that_are_read():
    """Not in blocks without a language, nor indented ones, which no test would find."""
    lost = [
        f"{block}: {line}"
        for block in BLOCKS
        if not block.language
        for line in block.text.splitlines()
        if re.match(r"(python3? -m|pip install|make( |$)|\./edge-effdet|torchrun) ?", line)
    ]
    assert lost == []
    assert len(COMMANDS) > 40


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("python -m edge_effdet.train --data d --output o --epoch-s 3", "unrecognized arguments: --epoch-s"),
        ("python -m edge_effdet.detect --source photos", "required: --engine"),
        ("python -m edge_effdet.detect --engine e --source p --nms-kind none", "invalid choice"),
        ("edge-effdet build-engine --batch-size x", "invalid int"),
        ("edge-effdet exprot", "there is no verb exprot"),
        ("./edge-effdet install --no-such-option", "unrecognized arguments"),
        ("/opt/edge-effdet/bccd/edge-effdet instal", "no verb"),
        ("make no-such-target", "No rule to make target"),
        ("pip install 'edge-effdet[ort,no-such]'", "there is no extra no-such"),
        ("torchrun --nproc-per-node 4 -m edge_effdet.train", "required: --data"),
        ("srun sh -c 'torchrun -m edge_effdet.train --data d --output o --bad'", "unrecognized arguments: --bad"),
        ("python -m benchmarks.gpu_check --parts gone", "invalid choice"),
        ("python -m edge_effdet.data convert d", "required: --to"),
    ],
)
def test_what_is_wrong_is_noticed(command: str, said: str, tmp_path: Path):
    (words,) = shell_commands(command)
    assert said in (judge(words, tmp_path) or "")


def test_commands_of_others_are_known_as_such(tmp_path: Path):
    assert [judge(words, tmp_path) for words in shell_commands("curl a | tar -x && docker ps")] == [None] * 3


def test_how_a_shell_text_is_read():
    text = "A=1 sudo python -m a --b 'c d' \\\n  --e > out.txt  # why\ncd x && make y | tee log\n# nothing\nsrun --nodes=2 sh -c 'f g'\n"
    assert list(shell_commands(text)) == [
        ["python", "-m", "a", "--b", "c d", "--e"], ["cd", "x"], ["make", "y"], ["tee", "log"], ["f", "g"],
    ]  # fmt: skip


def test_how_blocks_are_read(tmp_path: Path):
    page = tmp_path / "page.md"
    page.write_text(
        "a\n\n<!-- not run: why -->\n```bash\nx\n```\n\n- b\n\n  ```sh\n  y\n  ```\n\n````md\n```bash\nz\n```\n````\n"
    )
    found = [(block.line, block.language, block.not_run) for block in read_blocks(page)]
    assert found == [(4, "bash", "why"), (10, "sh", None), (14, "md", None)]


@pytest.mark.parametrize("block", [block for block in BLOCKS if block.language == "python"], ids=str)
def test_python_is_valid_and_names_what_there_is(block: Block):
    # Text of a session, and what was typed in it.
    text = "\n".join(
        line[4:] if line.startswith((">>> ", "... ")) else line for line in inspect.cleandoc(block.text).splitlines()
    )
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "edge_effdet":
            module = importlib.import_module(node.module or "")
            for name in node.names:
                there = hasattr(module, name.name) or find_spec(f"{node.module}.{name.name}")
                assert there, f"{node.module} has no {name.name}"
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "edge_effdet":
            assert hasattr(edge_effdet, node.attr), f"edge_effdet has no {node.attr}"


@pytest.mark.parametrize("block", [block for block in BLOCKS if block.language == "json"], ids=str)
def test_json_is_valid(block: Block):
    json.loads(block.text)
