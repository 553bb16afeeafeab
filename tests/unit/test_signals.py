"""Ctrl-C and SIGTERM: at once while a command imports, an exception while it works, and nothing to other programs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from edge_effdet import signals
from edge_effdet.cli import Result, make_parser, run_verb

ROOT = Path(__file__).parents[2]


def let_be_interrupted() -> None:
    """A shell that starts the tests in its background lets them ignore Ctrl-C, and so their children."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("started", ["-m edge_effdet.detect", "-m edge_effdet train", "edge-effdet verify"])
def test_a_command_that_is_importing_ends_at_once(tmp_path, number, started):
    # The first module that a command imports by name; this one sends the signal, and would then take a quarter of an hour.
    (tmp_path / "argparse.py").write_text(f"import os, time\nos.kill(os.getpid(), {int(number)})\ntime.sleep(900)\n")
    words = started.split()
    if words[0] == "edge-effdet":
        # As pip writes it.
        script = tmp_path / words[0]
        script.write_text("import sys\nfrom edge_effdet.__main__ import main\nsys.exit(main())\n")
        words[0] = str(script)
    done = subprocess.run(
        [sys.executable, *words],
        env={**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"},
        capture_output=True,
        text=True,
        preexec_fn=let_be_interrupted,
        timeout=300,
    )
    assert (done.returncode, done.stdout, done.stderr) == (128 + number, "", f"{signals.SAID}\n")


def test_a_program_that_imports_the_package_keeps_its_signals():
    code = (
        "import signal, edge_effdet.cli, edge_effdet.signals as own\n"
        "print(own.IS_COMMAND, signal.getsignal(signal.SIGINT) is signal.default_int_handler, signal.getsignal(signal.SIGTERM) == 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, preexec_fn=let_be_interrupted, cwd=ROOT
    )
    assert done.stdout == "False True True\n", done.stderr


@pytest.fixture
def handlers():
    """Python's own handlers, whatever the tests were started with."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("handlers")
@pytest.mark.parametrize(("number", "kind"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, signals.Terminated)])
def test_a_signal_raises_during_the_work_and_is_as_before_after_it(number, kind):
    with pytest.raises(KeyboardInterrupt) as raised, signals.raising():
        os.kill(os.getpid(), number)
    assert type(raised.value) is kind and signals.was_asked() == number
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    with signals.raising():
        assert signals.was_asked() is None
        # The service takes such a thread for one that hangs.
        assert not [each for each in threading.enumerate() if each.name.startswith("edge-effdet-")]


@pytest.mark.usefixtures("handlers")
def test_a_signal_that_somebody_handles_stays_theirs():
    seen = []
    signal.signal(signal.SIGTERM, lambda number, frame: seen.append(number))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with signals.raising():
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
    assert seen == [signal.SIGTERM] and signal.getsignal(signal.SIGINT) == signal.SIG_IGN


@pytest.mark.usefixtures("handlers")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("replaced", [None, RuntimeError("invalid handle"), ValueError])
def test_a_verb_ends_with_the_signals_code_whatever_a_library_makes_of_it(capsys, number, code, replaced):
    def stage(arguments):
        try:
            os.kill(os.getpid(), number)
        except KeyboardInterrupt:
            if replaced is None:
                raise
            raise replaced from None
        return Result("never")

    assert run_verb(make_parser("test", "Test.", "none"), stage, []) == code
    assert capsys.readouterr() == ("", f"{signals.SAID}\n")


REPEATED = """
import os, signal, sys, time
from edge_effdet import signals
signal.signal(signal.SIGINT, signal.default_int_handler)
def ask():
    os.kill(os.getpid(), signal.SIGINT)
with signals.raising():
    try:
        ask()
    except KeyboardInterrupt:
        ask()  # a terminal and a program in between both send it
        print("cleaning", flush=True)
        signals._request.at -= 2.0
        ask()
        print("never")
"""


def test_whoever_asks_again_does_not_wait_for_the_cleaning():
    done = subprocess.run([sys.executable, "-c", REPEATED], capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stdout, done.stderr) == (130, "cleaning\n", f"{signals.SAID_AT_ONCE}\n")


IN_A_LIBRARY = """
import hashlib, os, signal, threading, time
from edge_effdet import signals
signal.signal(signal.SIGINT, signal.default_int_handler)
signals._ONE_REQUEST = 0.05
def ask_twice():
    for _ in range(2):
        time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGINT)
with signals.raising():
    threading.Thread(target=ask_twice, daemon=True).start()
    hashlib.pbkdf2_hmac("sha256", b"", b"", 20_000_000)
"""


def test_whoever_asks_again_does_not_wait_for_a_library():
    done = subprocess.run([sys.executable, "-c", IN_A_LIBRARY], capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", f"{signals.SAID_AT_ONCE}\n")


WITH_A_WORKER = """
import os, signal, time, warnings
from edge_effdet import signals
# From 3.12 on Python warns of a fork beside threads.
warnings.simplefilter("ignore", DeprecationWarning)
signals._ONE_REQUEST = 0.05
with signals.raising():
    worker = os.fork()
    if worker == 0:
        signal.signal(signal.SIGTERM, lambda *_: None)
        time.sleep(0.5)
        os._exit(0)
    for _ in range(2):
        time.sleep(0.1)
        os.kill(worker, signal.SIGTERM)
    os.waitpid(worker, 0)
print(signal.set_wakeup_fd(-1))
"""


def test_what_a_worker_is_sent_is_no_request_to_its_parent():
    done = subprocess.run([sys.executable, "-c", WITH_A_WORKER], capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stdout, done.stderr) == (0, "-1\n", "")


@pytest.mark.usefixtures("handlers")
def test_an_event_loop_keeps_seeing_its_signals():
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    signal.set_wakeup_fd(writing)
    try:
        with pytest.raises(KeyboardInterrupt), signals.raising():
            os.kill(os.getpid(), signal.SIGINT)
        assert os.read(reading, 1) == bytes([signal.SIGINT])
    finally:
        assert signal.set_wakeup_fd(-1) == writing
        os.close(reading)
        os.close(writing)


@pytest.mark.usefixtures("handlers")
def test_ctrl_c_is_kept_from_children():
    """A terminal sends it to all processes that it started, and these have no one to tell."""
    code = "import sys, time; print('ready', flush=True); time.sleep(0.3); print('alive', flush=True)"
    with signals.kept_from_children():
        child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert child.stdout.readline() == "ready\n"
    child.send_signal(signal.SIGINT)
    assert child.communicate()[0] == "alive\n" and child.returncode == 0
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, ())
    with pytest.raises(KeyboardInterrupt), signals.kept_from_children():
        os.kill(os.getpid(), signal.SIGINT)
