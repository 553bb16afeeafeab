"""A cluster of Slurm with two nodes, both on this machine: an evaluation by Dask workers that Slurm started, and training over both nodes.

It needs root and Debian's packages slurmd, slurmctld, slurm-client and munge. With ``EDGE_EFFDET_REQUIRE_SLURM=1`` it fails without them.
"""

from __future__ import annotations

import json
import os
import secrets
import shlex
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from edge_effdet.artifacts import Engine
from tests.clusters import ROOT, run_cluster

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "scontrol")
NODES = ("n1", "n2")
CONFIGURATION = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket
CredType=cred/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
ReturnToService=2
SlurmdParameters=config_overrides
MpiDefault=none
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={first} CPUs=1 RealMemory=4000
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={second} CPUs=1 RealMemory=4000
PartitionName=main Nodes=n1,n2 Default=YES MaxTime=INFINITE State=UP
"""


class Slurm:
    """A controller and two nodes.

    Attributes:
        environment: where Slurm's commands find them.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf")}
        self._processes: list[subprocess.Popen[bytes]] = []
        for name in ("state", "munge"):
            (folder / name).mkdir(mode=0o700)
        key = folder / "munge" / "key"
        key.write_bytes(secrets.token_bytes(1024))
        key.chmod(0o400)
        host, (controller, first, second) = socket.gethostname().split(".")[0], free_ports(3)
        (folder / "slurm.conf").write_text(
            CONFIGURATION.format(folder=folder, host=host, controller=controller, first=first, second=second)
        )
        munge = [f"--{name}-file={folder}/munge/{name}" for name in ("key", "pid", "log", "seed")]
        self._start("munged", "--foreground", "--force", f"--socket={folder}/munge/socket", *munge)
        wait_until((folder / "munge" / "socket").exists)
        self._start("slurmctld", "-D")
        for node in NODES:
            self._start("slurmd", "-D", "-N", node)
        wait_until(lambda: self.say("sinfo", "--noheader", "--format=%T %D") == "idle 2")

    def _start(self, *command: str) -> None:
        with open(self.folder / f"log-{len(self._processes)}", "wb") as log:
            self._processes.append(subprocess.Popen(command, stdout=log, stderr=log, env=self.environment))

    def say(self, *command: str) -> str:
        """What a command of Slurm prints."""
        return subprocess.run(
            command, env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=False
        ).stdout.strip()

    def submit(self, command: str, log: Path) -> str:
        """Start a shell command once on each node; it finds the node's name in SLURMD_NODENAME. Gives the number of the job."""
        script = self.folder / f"{log.name}.sh"
        script.write_text(f"#!/bin/sh\ncd {shlex.quote(str(ROOT))}\nsrun sh -c {shlex.quote(command)}\n")
        flags = ["--nodes=2", "--ntasks-per-node=1", "--parsable", f"--output={log}"]
        return self.say("sbatch", *flags, str(script))

    def state(self, job: str) -> str:
        """The state of a job, as COMPLETED."""
        told = dict(each.split("=", 1) for each in self.say("scontrol", "show", "job", job).split() if "=" in each)
        return told.get("JobState", "")

    def stop(self) -> None:
        self.say("scancel", "--user=root")
        wait_until(lambda: not self.say("squeue", "--noheader"))
        for process in reversed(self._processes):
            process.terminate()
            process.wait(30)


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on now."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    try:
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


def wait_until(ready: Callable[[], object], seconds: float = 60) -> None:
    until = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < until, "it took too long"
        time.sleep(0.2)


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    reason = f"there is no {', '.join(missing)}" if missing else "only root can start it" if os.geteuid() else ""
    if reason:
        reason = f"no Slurm: {reason}; apt-get install slurmd slurmctld slurm-client munge"
        if os.environ.get("EDGE_EFFDET_REQUIRE_SLURM") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    running = Slurm(tmp_path_factory.mktemp("slurm"))
    try:
        yield running
    finally:
        running.stop()


def test_workers_that_slurm_started_on_both_nodes_evaluate(
    slurm: Slurm, bccd_engine: Engine, bccd: Path, tmp_path: Path
):
    pytest.importorskip("distributed")
    from edge_effdet import evaluate
    from edge_effdet.evaluation.spread import connect

    command = ["--engine", str(bccd_engine.path), "--data", str(bccd), "--pictures", "0", "--output"]
    with run_cluster(tmp_path / "cluster", 0) as cluster:
        worker = f"{sys.executable} -m distributed.cli.dask_worker --scheduler-file {cluster.file} --nthreads 1"
        flags = f'--no-dashboard --death-timeout 120 --local-directory {tmp_path} --name "$SLURMD_NODENAME"'
        job = slurm.submit(f"exec {worker} {flags}", tmp_path / "workers.log")
        with connect(str(cluster.file)) as client:
            client.wait_for_workers(2, timeout=120)
            names = {each["name"] for each in client.scheduler_info(n_workers=-1)["workers"].values()}
        assert names == set(NODES)
        assert evaluate.main([*command, str(tmp_path / "spread"), "--dask", str(cluster.file)]) == 0
        slurm.say("scancel", job)
        wait_until(lambda: slurm.state(job) == "CANCELLED")
    assert evaluate.main([*command, str(tmp_path / "serial")]) == 0
    for name in ("metrics.json", "detections.json"):
        assert (tmp_path / "spread" / name).read_bytes() == (tmp_path / "serial" / name).read_bytes()


def test_training_runs_over_both_nodes(slurm: Slurm, tiny_voc: Path, tmp_path: Path):
    pytest.importorskip("accelerate")
    flags = (
        f"--data {tiny_voc} --output {tmp_path / 'run'} --model tf_efficientdet_lite0 --image-size 64 --backbone random"
    )
    train = f"-m edge_effdet.train {flags} --epochs 2 --batch-size 4 --workers 0 --device cpu"
    # Each node is a machine of its own; the first one is where they meet.
    meet = f'--nnodes 2 --nproc-per-node 1 --node-rank "$SLURM_NODEID" --master-addr 127.0.0.1 --master-port {free_ports(1)[0]}'
    log = tmp_path / "train.log"
    node = 'echo "node $SLURM_NODEID is $SLURMD_NODENAME"'
    job = slurm.submit(f"{node}; OMP_NUM_THREADS=1 exec {sys.executable} -m torch.distributed.run {meet} {train}", log)
    wait_until(lambda: slurm.state(job) in ("COMPLETED", "FAILED", "CANCELLED"), 900)
    said = log.read_text()
    assert slurm.state(job) == "COMPLETED", said
    assert {"node 0 is n1", "node 1 is n2"} <= set(said.splitlines())
    epochs = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [epoch["epoch"] for epoch in epochs] == [1, 2]
    assert (tmp_path / "run" / "best.safetensors").is_file()
