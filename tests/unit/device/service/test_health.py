"""The wait for a healthy service: frames have to advance, in a process that lives, with the right version."""

from __future__ import annotations

import threading

import pytest

from edge_effdet.device.service.health import wait_until_healthy
from edge_effdet.device.service.status import status_path, write_status
from tests.statuses import make_status

VERSION = "1.0-aaaa"


@pytest.fixture
def keep_writing(store):
    """Writes a status again and again, with more frames each time; its fields may be changed meanwhile."""
    over = threading.Event()
    changes = {"step": 1}

    def write():
        frames = 10
        while not over.wait(0.05):
            frames += changes["step"]
            others = {name: value for name, value in changes.items() if name != "step"}
            write_status(status_path(store.folder), make_status(**{"frames": frames, **others}))

    thread = threading.Thread(target=write)
    thread.start()
    yield changes
    over.set()
    thread.join()


def test_a_service_whose_frames_advance_is_healthy(store, keep_writing):
    assert wait_until_healthy(store.folder, VERSION, 30).healthy


def test_frames_that_do_not_advance_are_not_enough(store, keep_writing):
    keep_writing["step"] = 0
    health = wait_until_healthy(store.folder, VERSION, 1)
    assert not health.healthy
    assert "no frames came through" in health.reason


def test_a_service_without_work_is_healthy_at_once(store):
    write_status(status_path(store.folder), make_status(state="idle", fps=0.0))
    assert wait_until_healthy(store.folder, VERSION, 0).healthy


def test_the_version_before_does_not_count(store, keep_writing):
    health = wait_until_healthy(store.folder, "2.0-bbbb", 0.5)
    assert not health.healthy
    assert health.reason == "the version 1.0-aaaa still runs, and 2.0-bbbb does not"
    keep_writing["version"] = "2.0-bbbb"
    assert wait_until_healthy(store.folder, "2.0-bbbb", 30).healthy


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"healthy": False, "reason": "the engine is being loaded"}, "the engine is being loaded"),
        ({"process": "earlier:1", "last_error": "No camera."}, "has ended: No camera"),
        ({"updated_s": 0.0}, "s old, so its process"),
    ],
)
def test_the_reason_is_told(store, changes, said):
    write_status(status_path(store.folder), make_status(**changes))
    health = wait_until_healthy(store.folder, VERSION, 0)
    assert not health.healthy
    assert said in health.reason


def test_without_a_status_it_is_not_healthy(store):
    assert "no status" in wait_until_healthy(store.folder, VERSION, 0.3).reason


def test_a_service_that_becomes_healthy_late_is_waited_for(store, keep_writing):
    keep_writing |= {"healthy": False, "reason": "the engine is being loaded"}
    timer = threading.Timer(0.6, lambda: keep_writing.update(healthy=True, reason=""))
    timer.start()
    assert wait_until_healthy(store.folder, VERSION, 30).healthy
    timer.join()
