"""Runs commands of the package in forks of a process that has imported it and torch already: python -m tests.faults.server LIBRARY

A command takes seconds to import torch, and a fork takes milliseconds; what a command does from its ``main`` on is the same. LIBRARY is ``calls.c``, compiled and
preloaded. A request is a line of JSON on stdin, and the answer to it one on stdout; ``launcher.py`` is the other end.

Networks have a small backbone here (``small_networks``), and the little that only costs time is left out: most of the turns of a benchmark and of the
timing of an engine, the machine's peaks, and the choice of packages on an index.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import gc
import importlib
import json
import os
import pkgutil
import resource
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import IO, Any

from edge_effdet import signals

IMPORTED = (
    "accelerate",
    "av",
    "effdet",
    "faster_coco_eval",
    "httptools",
    "jinja2",
    "matplotlib.backends.backend_agg",
    "matplotlib.backends.backend_svg",
    "matplotlib.figure",
    "onnx",
    "onnx_ir",
    "onnxruntime",
    "onnxscript",
    "prometheus_client",
    "safetensors.torch",
    "starlette.applications",
    "timm",
    "torch.onnx",
    "torch.utils.data",
    "torch.utils.tensorboard",
    "torchvision",
    "tqdm",
    "uvicorn",
    "uvloop",
)
"""What the package imports inside functions, and takes long. OpenVINO starts a thread when it is imported, so each fork does that itself."""

COUNT, SEND_SIGNAL, FAIL_ONCE, FAIL_FOR_GOOD = range(4)
"""The actions of ``calls_arm``."""

GRACE = 10.0
"""Seconds in which what a command has started has to end after the command; less for a command that has less time itself."""

STRANGER = 54321
"""The number of a user that no system has."""

KEPT_DEVICES = ("null", "zero", "full", "random", "urandom", "tty")

_CAPABILITIES = 0x20080522
_DAC_OVERRIDE, _DAC_READ_SEARCH = 1, 2
_NEW_MOUNTS, _NEW_USERS = 0x00020000, 0x10000000
_SUBREAPER = 36


def import_all() -> None:
    """Import the package and what it imports later."""
    import edge_effdet
    import edge_effdet.backends

    for name in IMPORTED:
        importlib.import_module(name)
    for module in pkgutil.walk_packages(edge_effdet.__path__, "edge_effdet."):
        # A runtime for GPUs is not here.
        with contextlib.suppress(ImportError):
            importlib.import_module(module.name)


@contextlib.contextmanager
def quick_commands() -> Iterator[None]:
    """Small networks, and less of what only takes time."""
    from edge_effdet.benchmarking import options, stage
    from edge_effdet.deploying import stage as deploying
    from edge_effdet.deploying.requirements import ChosenPackages
    from edge_effdet.runtime import latency
    from tests.networks import small_networks, traced_once

    def choose(target: Any, backend: str, *_: object) -> ChosenPackages:
        return ChosenPackages(target=target, backend=backend, pythons=(), pins=None)

    counts = ("rounds", "pool_rounds", "probes", "queries", "pool_queries", "probe_queries", "stages", "profiled")
    seconds = ("single_s", "network_s", "pool_s", "probe_s")
    options.EFFORTS["quick"] = options.Effort(**dict.fromkeys(counts, 2), **dict.fromkeys(seconds, 0.02), tries=1)
    stage.measure_peaks = lambda threads: None
    deploying.choose_packages = choose
    latency.Turns = partial(latency.Turns, rounds=2, runs=2, warm_up=1)
    with small_networks(), traced_once():
        yield


def require_one_thread() -> None:
    """Only the thread that forks goes on in a fork, so that a lock of another one would stay locked."""
    threads = list(Path("/proc/self/task").iterdir())
    if len(threads) > 1:
        names = [(each / "comm").read_text().strip() for each in threads]
        raise SystemExit(f"the server has several threads and cannot fork: {names}")


def trace(checkpoint: str) -> None:
    """Trace a checkpoint's network here, so that no fork has to."""
    from tqdm import tqdm

    from edge_effdet.graph.export import ExportOptions, export_network, load_source

    network, spec, parents = load_source(Path(checkpoint), None)
    with tempfile.TemporaryDirectory() as folder:
        export_network(network, spec, parents, Path(folder) / "traced.onnx", ExportOptions())
    if tqdm.monitor is not None:
        # A thread of the progress bar that the exporter had.
        tqdm.monitor.exit()
        tqdm.monitor = None
    gc.freeze()


def redirect(number: int, place: str) -> None:
    """Let a standard stream lead to a file; with ``closed`` to nothing, as Python has it for a stream that was closed before it began."""
    name = ("stdin", "stdout", "stderr")[number]
    if place == "closed":
        os.close(number)
        setattr(sys, name, None)
        setattr(sys, f"__{name}__", None)
        return
    file = os.open(place, os.O_RDONLY if number == 0 else os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    os.dup2(file, number)
    os.close(file)


def drop_rights() -> None:
    """Let the permissions of files hold for root too."""
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(_CAPABILITIES, 0)
    sets = (ctypes.c_uint32 * 6)()
    if libc.capget(header, sets):
        raise OSError(ctypes.get_errno(), "capget")
    kept = ~(1 << _DAC_OVERRIDE | 1 << _DAC_READ_SEARCH) & 0xFFFFFFFF
    for index in range(3):
        sets[index] &= kept
    if libc.capset(header, sets):
        raise OSError(ctypes.get_errno(), "capset")


def unshare(kind: int) -> None:
    """Give this process a namespace of its own. Raises OSError where it may not."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(kind):
        raise OSError(ctypes.get_errno(), "unshare")


def become_stranger() -> None:
    """Be a user of whom the system knows the number alone, as in a container, though files take this process for the same user as before."""
    user, group = os.geteuid(), os.getegid()
    unshare(_NEW_USERS)
    for name, text in (
        ("setgroups", "deny"),
        ("uid_map", f"{STRANGER} {user} 1"),
        ("gid_map", f"{STRANGER} {group} 1"),
    ):
        Path("/proc/self", name).write_text(text)


def hide_shared_memory(how: str, aside: Path) -> None:
    """For this process alone, let /dev/shm be full, or not be there."""
    unshare(_NEW_MOUNTS)
    commands = ["mount --make-rprivate /"]
    if how == "full":
        commands += ["mount -t tmpfs -o size=64k tmpfs /dev/shm", "head -c 65536 /dev/zero > /dev/shm/full"]
    else:
        aside.mkdir()
        commands += [f"mount -t tmpfs tmpfs {aside}"]
        for name in KEPT_DEVICES:
            commands += [f"touch {aside}/{name}", f"mount --bind /dev/{name} {aside}/{name}"]
        commands += [f"ln -s /proc/self/fd {aside}/fd", f"mount --rbind {aside} /dev"]
    subprocess.run(["sh", "-ec", "\n".join(commands)], check=True, stdin=subprocess.DEVNULL, capture_output=True)


def limit(name: str, value: int) -> None:
    """Set a limit. That of memory is given as what may still come, that of files as how many more may be opened."""
    if name == "RLIMIT_AS":
        value += int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    elif name == "RLIMIT_NOFILE":
        value += max(int(each.name) for each in Path("/proc/self/fd").iterdir())
    elif name == "RLIMIT_FSIZE":
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    number = getattr(resource, name)
    resource.setrlimit(number, (value, resource.getrlimit(number)[1]))


def raw(text: str) -> bytes:
    """The bytes of a name, in whatever locale this process runs."""
    return text.encode("utf-8", "surrogateescape")


def become(run: dict[str, Any], library: str) -> list[str]:
    """Turn this fork into what a command finds when it is started. Returns its words."""
    os.setsid()
    # A shell lets what it starts in the background ignore Ctrl-C.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        redirect(number, run[name])
    place = raw(run["cwd"])
    os.chdir(place)
    os.environb.clear()
    os.environb.update({raw(name): raw(value) for name, value in run["environment"].items()})
    tempfile.tempdir = None
    # What the package does when it is imported by a command.
    signals.IS_COMMAND = True
    signals.end_while_importing()
    words = [os.fsdecode(raw(word)) for word in run["words"]]
    sys.argv = ["edge-effdet", *words]
    if run["shm"]:
        hide_shared_memory(run["shm"], Path(run["aside"]))
    if run["drop_rights"]:
        drop_rights()
    if run["stranger"]:
        become_stranger()
    for name, value in run["limits"].items():
        limit(name, value)
    if run["calls"] is not None:
        calls = run["calls"]
        log = os.open(calls["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600) if calls["log"] else -1
        number = ctypes.c_long(calls["number"])
        ctypes.CDLL(library).calls_arm(os.path.realpath(place), number, calls["action"], calls["argument"], log)
    return words


def run_command(run: dict[str, Any], library: str) -> int:
    """In a fork: be the command, and return its exit code."""
    words = become(run, library)
    if run["fresh"]:
        os.execv(sys.executable, [sys.executable, "-m", run["module"], *words])
    module = importlib.import_module(run["module"])
    # By its name multiprocessing finds the module that a process began with.
    sys.modules["__main__"].__spec__ = module.__spec__
    return module.main(words)


class Running:
    """A command that runs.

    Attributes:
        code: its exit code, negative for a signal; None while it runs.
    """

    def __init__(self, pid: int, run: dict[str, Any], reader: int | None) -> None:
        self.pid, self.run, self.reader = pid, run, reader
        self.started = time.monotonic()
        self.handle = os.pidfd_open(pid)
        self.code: int | None = None
        self.seconds = 0.0
        self.hung = self.told = False

    def look(self) -> None:
        """Read the first line that it prints, send the signal that ends it, or kill it where it takes too long."""
        if self.reader is not None and select.select([self.reader], [], [], 0)[0]:
            content = os.read(self.reader, 4096)
            if b"\n" in content or not content:
                os.close(self.reader)
                self.reader = None
        if select.select([self.handle], [], [], 0)[0]:
            self.code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
            self.seconds = time.monotonic() - self.started
            os.close(self.handle)
            if self.reader is not None:
                os.close(self.reader)
                self.reader = None
            return
        passed = time.monotonic() - self.started
        stop = self.run["stop"]
        if stop is not None and not self.told and self._is_ready(stop, passed):
            self.told = True
            os.kill(self.pid, signal.SIGTERM)
        if passed > self.run["patience"]:
            self.hung = True
            os.kill(self.pid, signal.SIGKILL)

    def _is_ready(self, stop: dict[str, Any], passed: float) -> bool:
        if self.run["stderr"] in ("closed", "/dev/full"):
            return passed > stop["seconds"]
        try:
            return stop["after"] in Path(self.run["stderr"]).read_text(errors="replace")
        except OSError:
            return False


def start(run: dict[str, Any]) -> Running | None:
    """Fork. None in the fork."""
    reader = None
    if run["stdout"] == "one line":
        reader, writer = os.pipe()
        run["stdout"] = f"/proc/self/fd/{writer}"
    pid = os.fork()
    if pid == 0:
        if reader is not None:
            os.close(reader)
        return None
    if reader is not None:
        os.close(writer)
    return Running(pid, run, reader)


def end_others(grace: float) -> list[str]:
    """Wait for the processes that the commands have left behind. Returns the command lines of those that did not end, which are killed."""
    until, left = time.monotonic() + grace, dict[str, str]()
    while True:
        try:
            pid, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return list(left.values())
        if pid:
            continue
        if time.monotonic() > until:
            for child in Path("/proc/self/task", str(os.getpid()), "children").read_text().split():
                with contextlib.suppress(OSError):
                    words = Path("/proc", child, "cmdline").read_bytes().replace(b"\0", b" ")
                    left.setdefault(child, words.decode(errors="replace"))
                    os.kill(int(child), signal.SIGKILL)
        time.sleep(0.005)


def serve(commands: IO[str], answers: IO[str], library: str) -> int:
    """Answer requests until there are no more. Returns the exit code of this process, which in a fork is that of a command."""
    for line in commands:
        request = json.loads(line)
        answer: dict[str, Any] = {}
        if "trace" in request:
            trace(request["trace"])
        elif "prepare" in request:
            require_one_thread()
            pid = os.fork()
            if pid == 0:
                from tests.faults.inputs import write_inputs

                write_inputs(Path(request["prepare"]))
                return 0
            answer["code"] = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        else:
            require_one_thread()
            runs: list[Running] = []
            for run in request["runs"]:
                running = start(run)
                if running is None:
                    return run_command(run, library)
                runs.append(running)
            while any(each.code is None for each in runs):
                for each in runs:
                    if each.code is None:
                        each.look()
                time.sleep(0.002)
            answer["runs"] = [{"code": each.code, "seconds": each.seconds, "hung": each.hung} for each in runs]
            answer["left"] = end_others(min([GRACE, *(each.run["patience"] for each in runs)]))
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
    return 0


def main() -> int:
    (library,) = sys.argv[1:]
    # Commands must not inherit them, and what prints here must not get between the answers.
    commands = os.fdopen(os.dup(0), "r", encoding="ascii")
    answers = os.fdopen(os.dup(1), "w", encoding="ascii")
    nothing = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1):
        os.dup2(nothing, number)
    os.close(nothing)
    if ctypes.CDLL(None, use_errno=True).prctl(_SUBREAPER, 1, 0, 0, 0):
        raise OSError(errno.ENOSYS, "prctl")
    import_all()
    # What is imported is no garbage; without this, the end of each fork would touch and so copy all of it, which takes a second.
    gc.freeze()
    with quick_commands():
        answers.write("{}\n")
        answers.flush()
        return serve(commands, answers, library)


if __name__ == "__main__":
    sys.exit(main())
