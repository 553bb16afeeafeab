"""The files for containers: linted where the linter is, and the command of the container run without one. No test builds an image."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from edge_effdet.deploying.containers import FOLDER, image_name, write_containers
from edge_effdet.device.manifest import BundledGraph, Manifest, files_of
from edge_effdet.device.targets import TARGETS

KINDS = {
    "jetson-orin-nano": "l4t",
    "jetson-orin-nx": "l4t",
    "jetson-agx-orin": "l4t",
    "jetson-thor": "l4t",
    "x86-gpu": "cuda",
    "arm64-cpu": "cpu",
    "x86-cpu": "cpu",
}


def find_program(name: str) -> str | None:
    """A program on the PATH, or in the environment of the tests, as pip installs it."""
    return shutil.which(name) or shutil.which(name, path=Path(sys.executable).parent)


SERVICE_KEYS = {
    "build", "image", "runtime", "environment", "devices", "group_add", "volumes", "read_only", "tmpfs", "cap_drop", "security_opt", "init", "restart",
    "stop_grace_period", "healthcheck", "logging",
}  # fmt: skip
"""Keys of a service in the Compose specification that are used. One that is misspelled is an error there, and so it is here."""


def write(folder: Path, target: str, backend: str | None = None, name: str = "Bccd_2.x") -> Path:
    folder.mkdir(exist_ok=True)
    manifest = Manifest(
        name=name,
        release="1.10",
        created_at="2026-01-01T00:00:00+00:00",
        made_by="0.1.0",
        target=target,
        backend=backend or TARGETS[target].backends[0],
        precision="int8",
        graphs={"int8": BundledGraph(graph="g", record="r", layers="l")},
        wheel="w",
        requirements="q",
        complete=False,
    )
    write_containers(folder, manifest)
    return folder / FOLDER


def test_every_target_has_a_dockerfile():
    assert set(KINDS) == set(TARGETS)


@pytest.mark.parametrize("target", KINDS)
def test_the_files_of_a_target(tmp_path, target):
    folder = write(tmp_path, target)
    assert sorted(files_of(folder)) == sorted([f"Dockerfile.{KINDS[target]}", "compose.yaml", "entrypoint.sh"])
    for name in files_of(folder):
        text = (folder / name).read_text(encoding="ascii")
        assert not re.search(r"@[A-Z]+@", text)
        assert "edge-effdet-bccd-2-x:1.10" in text or name == "entrypoint.sh"
    dockerfile = (folder / f"Dockerfile.{KINDS[target]}").read_text()
    assert "\nUSER 10001:10001\n" in dockerfile
    # A board with JetPack 6 and one with JetPack 7 have another TensorRT.
    assert ("l4t-jetpack:r36" in dockerfile.split("ARG BASE=")[-1]) == target.startswith(("jetson-orin", "jetson-agx"))


def test_without_the_gpu_the_image_needs_none(tmp_path):
    folder = write(tmp_path, "jetson-orin-nano", backend="onnxruntime")
    assert (folder / "Dockerfile.cpu").exists()
    assert "runtime" not in yaml.safe_load((folder / "compose.yaml").read_text())["services"]["detector"]


@pytest.mark.parametrize("target", ["jetson-orin-nano", "jetson-thor", "x86-gpu", "x86-cpu"])
def test_compose_reads_what_is_meant(tmp_path, target):
    folder = write(tmp_path, target)
    composed = yaml.safe_load((folder / "compose.yaml").read_text())
    assert set(composed) == {"services", "volumes"}
    service = composed["services"]["detector"]
    assert set(service) <= SERVICE_KEYS
    # Paths are relative to the file.
    context = folder / service["build"]["context"]
    assert context.resolve() == tmp_path.resolve()
    assert (context / service["build"]["dockerfile"]).is_file()
    assert service["image"] == "edge-effdet-bccd-2-x:1.10"
    on_gpu = KINDS[target] != "cpu"
    assert service.get("runtime") == ("nvidia" if on_gpu else None)
    assert ("NVIDIA_VISIBLE_DEVICES" in service["environment"]) == on_gpu
    assert all(isinstance(value, str) for value in service["environment"].values())
    assert service["read_only"] is True
    assert service["init"] is True
    named = {each.split(":")[0] for each in service["volumes"] if isinstance(each, str)}
    assert named == set(composed["volumes"]) == {"data"}
    mounts = [each["source"] for each in service["volumes"] if isinstance(each, dict)]
    assert mounts == (["/etc/nv_tegra_release"] if KINDS[target] == "l4t" else [])
    kind, check = service["healthcheck"]["test"]
    assert kind == "CMD-SHELL"
    assert check == "sh /bundle/containers/entrypoint.sh status || exit 1"
    for name in ("interval", "timeout", "start_period"):
        assert re.fullmatch(r"\d+[smh]", service["healthcheck"][name])


@pytest.mark.parametrize(
    ("name", "expected"), [("bccd", "edge-effdet-bccd"), ("A.b__C-", "edge-effdet-a-b-c"), ("9.9", "edge-effdet-9-9")]
)
def test_an_image_has_a_name_that_docker_takes(name, expected):
    assert image_name(name) == expected
    assert re.fullmatch(r"[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*", expected)


@pytest.mark.skipif(find_program("hadolint") is None, reason="hadolint is not installed")
@pytest.mark.parametrize("target", ["jetson-orin-nano", "jetson-thor", "x86-gpu", "x86-cpu"])
def test_hadolint_finds_nothing(tmp_path, target):
    folder = write(tmp_path, target)
    (dockerfile,) = folder.glob("Dockerfile.*")
    done = subprocess.run([find_program("hadolint"), "--no-color", str(dockerfile)], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, ""), done.stdout + done.stderr
    # It would find something.
    bad = subprocess.run(
        [find_program("hadolint"), "-"],
        input=dockerfile.read_text() + "\nRUN cd /tmp && sudo apt-get install x\n",
        capture_output=True,
        text=True,
    )
    assert bad.returncode != 0


@pytest.mark.skipif(find_program("shellcheck") is None, reason="shellcheck is not installed")
def test_shellcheck_finds_nothing(tmp_path):
    folder = write(tmp_path, "x86-cpu")
    done = subprocess.run([find_program("shellcheck"), str(folder / "entrypoint.sh")], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


ENTRY = """#!/bin/sh
for each in "$@"; do printf '%s\\n' "$each"; done > "{calls}"
mkdir -p "{root}/small"
printf '#!/bin/sh\\necho installed "$@"\\n' > "{root}/small/edge-effdet"
chmod +x "{root}/small/edge-effdet"
exit {code}
"""


@pytest.fixture
def container(tmp_path):
    """Runs the command of the container, with a program in the place of the bundle's entry that notes what it is told."""
    root, bundle = tmp_path / "the data", tmp_path / "the bundle"
    folder = write(bundle, "x86-cpu", name="small")

    def run(*arguments, code=0, **variables):
        entry = bundle / "edge-effdet"
        entry.write_text(ENTRY.format(calls=tmp_path / "calls", root=root, code=code))
        entry.chmod(0o755)
        environment = {"PATH": os.environ["PATH"], "EDGE_EFFDET_ROOT": str(root), **variables}
        done = subprocess.run(
            ["sh", str(folder / "entrypoint.sh"), *arguments], capture_output=True, text=True, env=environment
        )
        calls = tmp_path / "calls"
        told = calls.read_text().splitlines() if calls.exists() else []
        calls.unlink(missing_ok=True)
        return done, told

    run.root, run.bundle = root, bundle
    return run


def test_a_container_installs_and_then_runs(container):
    done, told = container(
        EDGE_EFFDET_SOURCE="nvarguscamerasrc ! nvvidconv", EDGE_EFFDET_INSTALL_FLAGS="--precision fp32"
    )
    assert done.returncode == 0, done.stderr
    assert told == [
        "install",
        "--root",
        str(container.root),
        "--service",
        "none",
        "--source",
        "nvarguscamerasrc ! nvvidconv",
        "--precision",
        "fp32",
    ]
    assert done.stdout == "installed run\n"
    done, told = container()
    assert told == ["install", "--root", str(container.root), "--service", "none"]
    done, told = container("status", "--json")
    assert (done.stdout, told) == ("installed status --json\n", [])


def test_a_container_whose_installation_fails_does_not_run(container):
    done, _ = container(code=4)
    assert (done.returncode, done.stdout) == (4, "")


@pytest.mark.parametrize(("code", "answer"), [(0, 0), (4, 1), (3, 1)])
def test_the_health_check_is_what_status_says(container, code, answer):
    """Docker takes 0 for healthy and 1 for not; others are reserved or mean nothing."""
    container()
    entry = container.root / "small" / "edge-effdet"
    entry.write_text(f'#!/bin/sh\n[ "$*" = status ] && exit {code}\nexit 99\n')
    composed = yaml.safe_load((container.bundle / FOLDER / "compose.yaml").read_text())
    check = composed["services"]["detector"]["healthcheck"]["test"][1].replace("/bundle/", f"'{container.bundle}'/")
    environment = {"PATH": os.environ["PATH"], "EDGE_EFFDET_ROOT": str(container.root)}
    assert subprocess.run(["sh", "-c", check], env=environment).returncode == answer
