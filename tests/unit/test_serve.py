"""The verb ``serve``, as a process that is started, asked and ended."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from edge_effdet import serve
from edge_effdet.artifacts import Engine
from tests.emulation.small_detector import make_pictures
from tests.serving import PATIENCE, build_small_engine, png


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    return build_small_engine(tmp_path_factory.mktemp("serve"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_says_where_it_listens_answers_and_ends_when_told_to(engine: Engine, number: int):
    command = [
        sys.executable,
        "-m",
        "edge_effdet.serve",
        "--engine",
        engine.path,
        "--listen",
        "127.0.0.1:0",
        "--log",
        "json",
        "--no-self-check",
    ]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        lines = iter(process.stderr)
        address = next(found[1] for line in lines if (found := re.search(r"listens on (http://\S+?):? ", line)))
        with urllib.request.urlopen(f"{address}/detect", png(make_pictures()[0]), timeout=PATIENCE) as answer:
            assert json.load(answer)["detections"]
        row = json.loads(next(lines))
        assert (row["method"], row["path"], row["status"]) == ("POST", "/detect", 200)
        process.send_signal(number)
        assert process.wait(PATIENCE) == 0
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["--listen", "0.0.0.0:8080"], "--token-file"),
        (["--listen", "8080"], "--listen"),
        (["--token-file", "missing"], "missing"),
        (["--certificate", "a.pem"], "--private-key"),
        (["--max-body-mib", "0"], "--max-body-mib"),
    ],
)
def test_what_makes_no_sense_is_told_before_anything_listens(engine: Engine, capsys, arguments, word):
    assert serve.main(["--engine", str(engine.path), "--no-self-check", *arguments]) == 2
    assert word in capsys.readouterr().err


def test_without_its_packages_it_names_the_extra(engine: Engine):
    script = (
        "import sys\n"
        "class Absent:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name.partition('.')[0] in ('uvicorn', 'starlette', 'prometheus_client'): raise ModuleNotFoundError(name, name=name)\n"
        "sys.meta_path.insert(0, Absent())\n"
        "from edge_effdet import serve\n"
        f"sys.exit(serve.main(['--engine', {str(engine.path)!r}]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
        env=os.environ,
        check=False,
    )
    assert done.returncode == 3
    assert "pip install 'edge-effdet[serve]'" in done.stderr
