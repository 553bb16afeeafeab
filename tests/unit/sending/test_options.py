"""What sending is told: refused before any work, and where the spools lie."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from edge_effdet.errors import BackendUnavailable, InputError, MissingDependency, UsageError
from edge_effdet.sending.options import SendOptions, make_senders, require_packages, spool_beside, state_folder
from edge_effdet.sending.spool import Spool
from tests.receivers import SPEC, WebhookReceiver, free_port, make_frame


def test_without_a_receiver_nothing_is_sent(tmp_path):
    require_packages(SendOptions())
    assert make_senders(SendOptions(), SPEC, "camera", tmp_path / "spools") == []
    assert not (tmp_path / "spools").exists()


@pytest.mark.parametrize(
    "wrong",
    [
        {"mqtt": "broker/topic"},
        {"webhook": "ftp://host/"},
        {"ros": "1/2"},
        {"frames": "some"},
        {"spool_mib": 0},
    ],
    ids=lambda wrong: next(iter(wrong)),
)
def test_what_makes_no_sense_is_refused_by_its_name(wrong):
    with pytest.raises(UsageError, match=f"`{next(iter(wrong))}`"):
        SendOptions(**wrong)


def test_a_missing_package_names_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "paho.mqtt.client", None)
    with pytest.raises(MissingDependency, match=r"paho-mqtt.*edge-effdet\[mqtt\]"):
        require_packages(SendOptions(mqtt="mqtt://broker/topic"))


def test_ros_that_is_not_there_names_what_to_source(monkeypatch):
    monkeypatch.setitem(sys.modules, "rclpy", None)
    with pytest.raises(BackendUnavailable, match=r"source /opt/ros"):
        require_packages(SendOptions(ros="/detections"))


@pytest.mark.parametrize("content", [None, "no certificate"])
def test_certificates_that_cannot_be_read_are_told(tmp_path, content):
    path = tmp_path / "ca.pem"
    if content is not None:
        path.write_text(content)
    with pytest.raises(InputError, match="`ca_file`"):
        require_packages(SendOptions(webhook="https://host/", ca_file=str(path)))


def test_each_receiver_has_a_spool_of_its_own(tmp_path):
    ports = [free_port(), free_port()]
    for port in ports:
        (sink,) = make_senders(SendOptions(webhook=f"http://127.0.0.1:{port}/"), SPEC, "camera", tmp_path)
        sink.write(make_frame(port))
        sink.close()
    assert len(list(tmp_path.glob("webhook-*.spool"))) == 2
    (sink,) = make_senders(SendOptions(webhook=f"http://me:you@127.0.0.1:{ports[0]}/"), SPEC, "camera", tmp_path)
    assert sink.report().waiting == 1, "who sends makes no other receiver"
    sink.close()


def test_the_folder_may_be_given(tmp_path):
    with WebhookReceiver() as receiver:
        options = SendOptions(webhook=f"http://127.0.0.1:{receiver.port}/", spool=str(tmp_path / "given"))
        (sink,) = make_senders(options, SPEC, "camera", tmp_path / "other")
        sink.close()
    assert [each.suffix for each in (tmp_path / "given").glob("*.spool")] == [".spool"]
    assert not (tmp_path / "other").exists()


def test_the_usual_folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert spool_beside(Path("found")) == tmp_path / "found.spool"
    assert spool_beside(Path()) == tmp_path.parent / f"{tmp_path.name}.spool"
    assert spool_beside(Path("/")) == Path("/.spool")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    assert state_folder() == tmp_path / "state" / "edge_effdet" / "spool"
    monkeypatch.delenv("XDG_STATE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert state_folder() == tmp_path / ".local" / "state" / "edge_effdet" / "spool"


def test_a_second_receiver_that_cannot_be_made_closes_the_first(tmp_path):
    pytest.importorskip("paho.mqtt")
    options = SendOptions(mqtt=f"mqtt://127.0.0.1:{free_port()}/a", webhook=f"http://127.0.0.1:{free_port()}/")
    first, second = make_senders(options, SPEC, "camera", tmp_path)
    for sink in (first, second):
        sink.close()
    (taken,) = tmp_path.glob("webhook-*.spool")
    spool = Spool(taken, 1)
    with pytest.raises(UsageError, match="Another process"):
        make_senders(options, SPEC, "camera", tmp_path)
    spool.close()
    for sink in make_senders(options, SPEC, "camera", tmp_path):
        sink.close()


def test_the_options_need_the_standard_library_alone():
    code = (
        "import sys\n"
        "class Blocker:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] not in {'edge_effdet', *sys.stdlib_module_names}: raise ModuleNotFoundError(name, name=name)\n"
        "sys.meta_path.insert(0, Blocker())\n"
        "from edge_effdet.device.service.options import ServiceOptions\n"
        "print(ServiceOptions(mqtt='mqtt://broker/a', track=True).mqtt)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "mqtt://broker/a\n", done.stderr
