"""From an engine or a graph to a bundle, and from the bundle to boxes on a device that has nothing but Python."""

from __future__ import annotations

import importlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from edge_effdet.artifacts import Engine, Graph, load_engine
from edge_effdet.deploy import main
from edge_effdet.deploying import stage
from edge_effdet.deploying.options import DeployConfig
from edge_effdet.deploying.requirements import ChosenPackages
from edge_effdet.deploying.signing import make_keys
from edge_effdet.deploying.stage import make_bundle
from edge_effdet.device import __main__ as device_verbs
from edge_effdet.device.engine import read_graph
from edge_effdet.device.install import InstallOptions, install
from edge_effdet.device.manifest import ENTRY, SUMS, Bundle, files_of, read_bundle, write_manifest
from edge_effdet.errors import BundleError, UsageError
from edge_effdet.runtime.detector import Detector
from edge_effdet.runtime.golden import decode_pictures, encode_picture, read_golden
from tests.integration.conftest import BCCD_CHECKPOINT, QUICK
from tests.once import make_once

CLEAN = {"PATH": "/usr/bin:/bin"}


def config_of(output: Path, **changes) -> DeployConfig:
    return DeployConfig(**{"target": "x86-cpu", "output": output, "release": "1.0", "name": "bccd", **changes})


@pytest.fixture
def without_index(monkeypatch):
    """Requirements without versions, as where there is no network, in tests that are about other things."""

    def choose(target, backend, *_):
        return ChosenPackages(target=target, backend=backend, pythons=(), pins=None)

    monkeypatch.setattr(stage, "choose_packages", choose)


@pytest.fixture(scope="module")
def int8_beside_fp32(bccd_graph: Graph, bccd_int8_graph: Graph, tmp_path_factory) -> Path:
    """The two graphs as ``build_engine`` leaves them: in one folder."""
    folder = tmp_path_factory.mktemp("graphs")
    shutil.copy(bccd_graph.path, folder / "bccd.fp32.onnx")
    return Path(shutil.copy(bccd_int8_graph.path, folder / "bccd.int8.onnx"))


def test_an_engine_becomes_a_bundle(bccd_engine: Engine, tmp_path, without_index):
    bundle = make_bundle(bccd_engine, config_of(tmp_path))
    assert bundle.path == tmp_path / "bccd-1.0-x86-cpu"
    assert bundle.archive == tmp_path / "bccd-1.0-x86-cpu.tar.gz"
    assert (bundle.manifest.precision, sorted(bundle.manifest.graphs)) == ("fp32", ["fp32"])
    # The tool that every Linux has checks it too.
    assert subprocess.run(["sha256sum", "--check", "--strict", "--quiet", SUMS], cwd=bundle.path).returncode == 0
    graph, record, convolutions = read_graph(bundle, "fp32")
    assert graph.sha256 == bccd_engine.require_record().parents["compiled_graph"]
    assert sum(each.macs for each in convolutions) == record.proof.convolution_macs
    assert os.access(bundle.path / ENTRY, os.X_OK)
    # Hidden folders of a build are gone.
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bccd-1.0-x86-cpu", "bccd-1.0-x86-cpu.tar.gz"]


@pytest.mark.slow
def test_the_fp32_graph_goes_along(int8_beside_fp32, bccd_graph, tmp_path, without_index):
    bundle = make_bundle(int8_beside_fp32, config_of(tmp_path, archive="none"))
    assert (bundle.manifest.precision, sorted(bundle.manifest.graphs)) == ("int8", ["fp32", "int8"])
    assert read_graph(bundle, "fp32")[0].sha256 == bccd_graph.sha256
    lowered, exact = (read_graph(bundle, precision)[1] for precision in ("int8", "fp32"))
    assert lowered.calibration is not None and exact.calibration is None
    # Both are judged in the same pictures on the device.
    assert {each.jpeg for each in lowered.golden.pictures} == {each.jpeg for each in exact.golden.pictures}
    assert lowered.golden.tolerance > exact.golden.tolerance


def test_a_graph_alone_is_said_to_be_alone(bccd_int8_graph, tmp_path, without_index, caplog):
    bundle = make_bundle(bccd_int8_graph, config_of(tmp_path, archive="none"))
    assert list(bundle.manifest.graphs) == ["int8"]
    assert "cannot fall back to FP32" in caplog.text


def test_a_release_never_changes(bccd_engine, tmp_path, without_index):
    bundle = make_bundle(bccd_engine, config_of(tmp_path, archive="none"))
    with pytest.raises(UsageError, match=r"is there already, and a release never changes; give another `release`"):
        make_bundle(bccd_engine, config_of(tmp_path, archive="none"))
    assert read_bundle(bundle.path).sha256 == bundle.sha256


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"python": "abc"}, "and not abc; give one of these as `python`"),
        ({"target": "x86-gpu", "wheels": True}, "`wheels` cannot gather tensorrt"),
        ({"target": "jetson-thor", "python": "3.10", "wheels": True}, "and not 3.10"),
    ],
)
def test_what_cannot_be_had_is_told_before_the_build(bccd_int8_graph, tmp_path, monkeypatch, changes, said):
    def build(*_, **__):
        raise AssertionError("minutes of work")

    monkeypatch.setattr(stage, "build", build)
    with pytest.raises(UsageError, match=said):
        make_bundle(bccd_int8_graph, config_of(tmp_path / "bundles", **changes))


def test_a_backend_that_the_target_lacks_is_refused(tmp_path):
    with pytest.raises(UsageError, match="tensorrt does not run on x86-cpu"):
        config_of(tmp_path, backend="tensorrt")


def edit_record(bundle: Bundle) -> None:
    """What an attacker does: a better AP, and all hashes right again."""
    path = bundle.path / bundle.manifest.graphs["fp32"].record
    path.write_text(path.read_text().replace('"engine_verified": false', '"engine_verified": true'))
    signature = bundle.path / f"{SUMS}.minisig"
    kept = signature.read_bytes()
    signature.unlink()
    write_manifest(bundle.path, bundle.manifest)
    signature.write_bytes(kept)


def test_a_record_that_is_edited_with_its_hash_passes_no_signature(bccd_engine, tmp_path, without_index):
    make_keys(tmp_path / "keys", None)
    secret, public = (next((tmp_path / "keys").glob(pattern)) for pattern in ("*.key", "*.pub"))
    bundle = make_bundle(bccd_engine, config_of(tmp_path / "out", sign=secret, archive="none"))
    assert bundle.signed_by
    options = InstallOptions(root=tmp_path / "root", public_key=str(public), dry_run=True, service="none")
    assert install(bundle.path, options).bundle.signed_by == bundle.signed_by
    edit_record(bundle)
    # Its own hashes are right, which is all that an unsigned bundle has.
    assert read_bundle(bundle.path).manifest == bundle.manifest
    with pytest.raises(BundleError):
        install(bundle.path, options)
    assert not (tmp_path / "root").exists()


def test_the_command_says_what_it_made(bccd_engine, tmp_path, without_index, capsys):
    flags = ["--engine", str(bccd_engine.path), "--target", "x86-cpu", "--output", str(tmp_path), "--name", "bccd"]
    assert main([*flags, "--release", "1.0", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["bytes"] == sum(path.stat().st_size for path in Path(told["bundle"]).rglob("*") if path.is_file())
    assert told["bytes"] < 25e6
    assert main([*flags, "--release", "1.0"]) == 2
    assert "give another --release" in capsys.readouterr().err


def test_a_precision_that_contradicts_the_engine_is_refused(bccd_engine, tmp_path, capsys):
    flags = ["--engine", str(bccd_engine.path), "--target", "x86-cpu", "--output", str(tmp_path / "out")]
    assert main([*flags, "--int8"]) == 2
    assert "is FP32, and --int8 asks for another precision" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def whole_bundle(int8_beside_fp32, tmp_path_factory) -> Path:
    """A bundle with all wheels, in a folder with a space and letters beyond ASCII."""

    def make(folder: Path) -> None:
        make_bundle(int8_beside_fp32, config_of(folder / "für das Gerät", wheels=True, archive="gz"))

    return make_once(tmp_path_factory, "whole_bundle", make) / "für das Gerät"


def run_there(command, home: Path, code: int = 0) -> str:
    done = subprocess.run(
        [str(each) for each in command], env={**CLEAN, "HOME": str(home)}, capture_output=True, text=True
    )
    assert done.returncode == code, done.stderr[-3000:]
    return done.stdout if code == 0 else done.stderr


def test_from_the_archive_to_boxes_in_an_empty_environment(whole_bundle, bccd_int8_graph, tmp_path):
    shutil.unpack_archive(whole_bundle / "bccd-1.0-x86-cpu.tar.gz", tmp_path)
    bundle, root = tmp_path / "bccd-1.0-x86-cpu", tmp_path / "ein Wurzelverzeichnis"
    before = files_of(bundle)
    python = getattr(sys, "_base_executable", sys.executable)
    start = [python, bundle / ENTRY]
    plan = run_there([*start, "install", "--root", root, "--service", "none", "--dry-run"], tmp_path)
    assert "nothing was changed" in plan and not root.exists()
    told = json.loads(run_there([*start, "install", "--root", root, "--service", "none", "--json"], tmp_path))
    assert told["report"]["golden"]["passed"]
    store, inside = root / "bccd", root / "bccd" / "current" / "venv" / "bin" / "python"
    code = "import importlib.util as u; print([n for n in ('torch', 'onnx', 'effdet') if u.find_spec(n)])"
    assert run_there([inside, "-I", "-c", code], tmp_path).strip() == "[]"
    # What it finds is what the host's engine finds.
    engine = load_engine(Path(told["engine"]))
    golden = read_golden(engine)
    picture = tmp_path / "picture.jpg"
    picture.write_bytes(encode_picture(decode_pictures(engine, golden)[0]))
    found = json.loads(
        run_there(
            [inside, "-m", "edge_effdet.detect", "--engine", engine.path, "--source", picture, "--json"], tmp_path
        )
    )
    with Detector.load(
        Engine(bccd_int8_graph.path, engine.spec, "onnxruntime", "int8", bccd_int8_graph.sha256)
    ) as host:
        expected = host(str(picture))
    scores = [each["score"] for each in found["images"][0]["detections"]]
    np.testing.assert_allclose(scores, expected.scores, atol=0.05)
    # A second call has nothing to do, and the bundle is as it was.
    again = json.loads(run_there([*start, "install", "--root", root, "--service", "none", "--json"], tmp_path))
    assert again["version"] == told["version"] and "engine" in again["skipped"]
    assert files_of(bundle) == before
    assert "right" in run_there([*start, "verify", "--root", root], tmp_path)
    assert "passed" not in run_there([store / ENTRY, "verify"], tmp_path)
    # Nothing detects there, which is what a monitor has to be told.
    assert "is not healthy" in run_there([store / ENTRY, "status"], tmp_path, code=4)
    # An engine that was changed afterwards is noticed.
    with open(engine.path, "r+b") as stream:
        stream.seek(5000)
        stream.write(b"\x00\x01\x02")
    assert "SHA-256 differs" in run_there([store / ENTRY, "verify"], tmp_path, code=2)
    run_there([store / ENTRY, "uninstall", "--purge"], tmp_path)
    assert not store.exists()


GUIDES = [
    Path(__file__).parents[2] / "docs" / f"{name}.md"
    for name in ("jetson", "trust", "service", "serve", "sending", "triton", "deepstream")
]


def commands_of_guides() -> list[str]:
    """The commands in the blocks of the guides, each on one line."""
    blocks = [
        block
        for guide in GUIDES
        for block in re.findall(r"^```(?:bash|sh)\n(.*?)^```", guide.read_text(), re.DOTALL | re.MULTILINE)
    ]
    lines = [line.strip() for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    return [
        line
        for line in lines
        if re.search(r"python -m edge_effdet\.|edge-effdet [a-z]", line) and not line.startswith("#")
    ]


@pytest.mark.parametrize("command", commands_of_guides())
def test_commands_of_the_guides_are_understood(command):
    """What cannot be run here, for want of a Jetson or a camera, is understood at least: each verb and each flag is there."""
    words = [word for word in shlex.split(command, comments=True) if word != "sudo" and "=" not in word.split("/")[0]]
    if "-m" in words:
        module, arguments = words[words.index("-m") + 1], words[words.index("-m") + 2 :]
        if module == "edge_effdet.data":
            return
        parser = importlib.import_module(module).make_argument_parser()
    else:
        at = next(index for index, word in enumerate(words) if word.endswith("edge-effdet"))
        verb, arguments = words[at + 1], words[at + 2 :]
        installed = words[at].startswith("/opt")
        make, _ = device_verbs._PARTS[verb]
        parser = make(device_verbs.Caller(store=Path("/opt/x")) if installed else device_verbs.Caller(bundle=Path()))
    parser.parse_args(arguments)


def test_the_guide_has_commands():
    assert len(commands_of_guides()) > 10


@pytest.mark.data
def test_the_host_side_of_the_guide(bccd_part, tmp_path, monkeypatch, without_index, capsys):
    """The guide's bundle for a Jetson, from a checkpoint, with a quicker INT8."""
    (command,) = (each for each in commands_of_guides() if "--calibration-data" in each)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bccd").symlink_to(bccd_part)
    (tmp_path / "runs" / "bccd").mkdir(parents=True)
    shutil.copy(BCCD_CHECKPOINT, tmp_path / "runs" / "bccd" / "best.safetensors")
    arguments = shlex.split(command)[shlex.split(command).index("edge_effdet.deploy") + 1 :]
    assert main([*arguments, *QUICK.split(), "--max-ap-drop", "none", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    bundle = read_bundle(tmp_path / "bundles" / "bccd-1.0-jetson-orin-nano")
    assert (told["backend"], told["precision"], sorted(told["graphs"])) == ("tensorrt", "int8", ["fp32", "int8"])
    _, record, convolutions = read_graph(bundle, "int8")
    # Quantized for TensorRT, whose rest is FP16, and judged on the host by the graph.
    assert {each.precision for each in convolutions if each.final} == {"fp16"}
    assert record.accuracy is not None and record.accuracy.drop is not None
    assert read_graph(bundle, "fp32")[1].accuracy.AP == record.accuracy.reference_AP
