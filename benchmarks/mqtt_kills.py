"""How many messages are lost, and how many come twice without saying so, where the process that sends to MQTT is killed again and again.

python -m benchmarks.mqtt_kills

A process writes frames with detections to the sink of ``--mqtt``, as ``detect`` does, and tells each frame that the sink has accepted. It is killed by SIGKILL at
random moments, started again at the frame after the last one that it told, and at the end left alone until its spool is empty. A real mosquitto (Debian's
package ``mosquitto``) takes the messages on this machine, and a subscriber notes them all.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.latency import positive
from benchmarks.machine import save_result
from benchmarks.parser import make_parser
from benchmarks.processes import ROOT
from edge_effdet.artifacts import Detections, ModelSpec
from edge_effdet.cli import Result, run_verb, table
from edge_effdet.errors import InputError, MissingDependency
from edge_effdet.runtime.pipeline import FrameResult
from edge_effdet.runtime.sources import Frame
from edge_effdet.sending.options import SendOptions, make_senders

TOPIC = "kills"

OBJECTS = 10
"""Detections of a frame."""

PAUSE = 0.002
"""Seconds between two frames."""

STARTING = 1.0
"""Seconds in which a process starts, opens its spool and begins to send. Every fifth kill is at a moment of them."""

PATIENCE = 60.0
"""Seconds after which what is waited for will not come any more."""


@dataclass(slots=True)
class Tally:
    """What was counted.

    Attributes:
        accepted: how often each frame was accepted, by its number: the one under way at a kill may be written twice.
        kills: how often the process was killed.
        before_any: how many of these were before it had accepted a frame.
    """

    accepted: list[int] = field(default_factory=list)
    kills: int = 0
    before_any: int = 0


class Collector:
    """Notes every message, in the order of arrival."""

    def __init__(self, port: int) -> None:
        try:
            import paho.mqtt.client as paho
        except ModuleNotFoundError as error:
            raise MissingDependency("paho-mqtt", "mqtt", "to hear what arrives") from error
        self.messages: list[dict[str, Any]] = []
        ready = threading.Event()
        self._client = paho.Client(paho.CallbackAPIVersion.VERSION2)
        self._client.on_connect = self._subscribe
        self._client.on_subscribe = lambda *_: ready.set()
        self._client.on_message = lambda _, __, message: self.messages.append(json.loads(message.payload))
        self._client.connect("127.0.0.1", port)
        self._client.loop_start()
        if not ready.wait(PATIENCE):
            raise InputError("The broker does not answer; start it by hand and look at what it says.")

    def _subscribe(self, *_: Any) -> None:
        self._client.subscribe(TOPIC, qos=1)

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()


@contextlib.contextmanager
def run_broker(folder: Path) -> Iterator[int]:
    """A mosquitto of its own; gives the port."""
    program = shutil.which("mosquitto", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if program is None:
        raise InputError("There is no mosquitto; install Debian's package mosquitto.")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    config = folder / "mosquitto.conf"
    # What waits for the subscriber must not be dropped by the broker.
    config.write_text(
        f"listener {port} 127.0.0.1\nallow_anonymous true\nuser root\nlog_dest none\nmax_queued_messages 0\n"
    )
    process = subprocess.Popen([program, "-c", str(config)], stderr=subprocess.DEVNULL)
    try:
        until = time.monotonic() + PATIENCE
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            if process.poll() is not None or time.monotonic() > until:
                raise InputError("mosquitto does not start; start it by hand and look at what it says.")
            time.sleep(0.02)
        yield port
    finally:
        process.terminate()
        process.wait()


def write_frames(port: int, folder: Path, first: int, last: int) -> None:
    """What is killed: write frames to the sink, and tell each that it accepted on stdout, with nothing that is kept back."""
    spec = ModelSpec("any", (64, 64), ("thing",), (1,))
    options = SendOptions(mqtt=f"mqtt://127.0.0.1:{port}/{TOPIC}", spool=str(folder))
    (sink,) = make_senders(options, spec, "camera")
    scores = np.linspace(0.9, 0.3, OBJECTS, dtype=np.float32)
    for number in range(first, last):
        boxes = np.arange(OBJECTS * 4, dtype=np.float32).reshape(OBJECTS, 4) + number
        found = Detections(boxes, scores, np.zeros(OBJECTS, np.int32))
        sink.write(FrameResult(Frame(f"camera#{number}", Path(), None, time.perf_counter()), found, "", None, 0.0))
        os.write(1, f"{number}\n".encode())
        time.sleep(PAUSE)
    sink.close()


def send_and_kill(port: int, folder: Path, messages: int, kills: int, seed: int) -> Tally:
    """Let a process write all frames, and kill it at random moments until it was done so often."""
    chance, tally = random.Random(seed), Tally()
    # The frames of the kills are spread over all of them.
    moments = sorted(chance.uniform(0, messages) for _ in range(kills))
    while True:
        first = tally.accepted[-1] + 1 if tally.accepted else 0
        command = [
            sys.executable,
            "-m",
            "benchmarks.mqtt_kills",
            "--child",
            str(port),
            str(folder),
            str(first),
            str(messages),
        ]
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        with process.stdout:
            if tally.kills < kills:
                if tally.kills % 5 == 4:
                    time.sleep(chance.uniform(0, STARTING))
                else:
                    for line in process.stdout:
                        tally.accepted.append(int(line))
                        if tally.accepted[-1] >= moments[tally.kills]:
                            break
                    # Somewhere between two frames, or while messages are under way.
                    time.sleep(chance.uniform(0, 10 * PAUSE))
                process.send_signal(signal.SIGKILL)
                tally.kills += 1
            tally.accepted += map(int, process.stdout)
            tally.before_any += not tally.accepted or tally.accepted[-1] < first
        code = process.wait()
        if code not in (0, -signal.SIGKILL):
            raise InputError(f"What sends has ended with exit code {code}; run it by hand and look at what it says.")
        if code == 0 and tally.kills >= kills:
            return tally


def judge_messages(tally: Tally, messages: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What became of the accepted frames.

    Args:
        tally: what was accepted.
        messages: what arrived, in its order.
    """
    arrived = {message["image"] for message in messages}
    seen: set[str] = set()
    again = unmarked = marked_once = disordered = 0
    latest = ""
    for message in messages:
        name = message["id"]
        if name in seen:
            again += 1
            unmarked += not message["duplicate"]
        else:
            marked_once += message["duplicate"]
            disordered += name < latest
            latest = max(latest, name)
        seen.add(name)
    frames = {f"camera#{number}" for number in tally.accepted}
    images: dict[str, str] = {}
    reused = sum(images.setdefault(message["id"], message["image"]) != message["image"] for message in messages)
    return {
        "accepted_frames": len(frames),
        "arrived_messages": len(messages),
        "distinct_messages": len(seen),
        "lost_frames": len(frames - arrived),
        "arrived_again": again,
        "arrived_again_without_a_mark": unmarked,
        "marked_and_arrived_once": marked_once,
        "out_of_order": disordered,
        "ids_of_two_frames": reused,
    }


def _run(arguments: argparse.Namespace) -> Result:
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mqtt-kills-")))
        port = stack.enter_context(run_broker(folder))
        collector = Collector(port)
        stack.callback(collector.close)
        tally = send_and_kill(port, folder / "spool", arguments.messages, arguments.kills, arguments.seed)
        until = time.monotonic() + PATIENCE
        wanted = {f"camera#{number}" for number in tally.accepted}
        while not wanted <= {message["image"] for message in collector.messages} and time.monotonic() < until:
            # What the last process left in its spool is sent by one that writes nothing.
            last = str(arguments.messages)
            command = [
                sys.executable,
                "-m",
                "benchmarks.mqtt_kills",
                "--child",
                str(port),
                str(folder / "spool"),
                last,
                last,
            ]
            subprocess.run(command, cwd=ROOT, check=True)
            time.sleep(0.1)
        judged = judge_messages(tally, collector.messages)
    result = {
        "messages": arguments.messages,
        "kills": tally.kills,
        "kills_before_any_frame": tally.before_any,
        **judged,
        "objects_a_frame": OBJECTS,
        "seed": arguments.seed,
    }
    rows = [("", "number"), *((name.replace("_", " "), str(value)) for name, value in result.items())]
    text = table(rows)
    if arguments.save:
        text += f"\n\n{save_result('mqtt-kills', result, arguments.name)}"
    wrong = {
        name: judged[name]
        for name in ("lost_frames", "arrived_again_without_a_mark", "ids_of_two_frames", "out_of_order")
        if judged[name]
    }
    return Result(text, result, InputError(f"Not every kill was survived: {json.dumps(wrong)}.") if wrong else None)


def main(argv: Sequence[str] | None = None) -> int:
    words = list(sys.argv[1:] if argv is None else argv)
    if words[:1] == ["--child"]:
        port, folder, first, last = words[1:]
        write_frames(int(port), Path(folder), int(first), int(last))
        return 0
    parser = make_parser(
        "mqtt_kills",
        "How many messages are lost, or come twice without saying so, where the process that sends is killed again and again.",
        "--messages 1000 --kills 20",
        name="mqtt-kills",
    )
    parser.add_argument("--messages", type=positive, default=1000, metavar="N", help="frames (default: 1000)")
    parser.add_argument("--kills", type=positive, default=20, metavar="N", help="how often (default: 20)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the moments (default: 0)")
    parser.add_argument("--save", action=argparse.BooleanOptionalAction, default=True, help="write the result file")
    return run_verb(parser, _run, argv)


if __name__ == "__main__":
    sys.exit(main())
