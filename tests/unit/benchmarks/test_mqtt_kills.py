"""The count of what kills cost: nothing is lost here, and a loss, a duplicate without a mark and a wrong order are noticed."""

from __future__ import annotations

import json
from typing import Any

import pytest

from benchmarks.mqtt_kills import Tally, judge_messages, main
from tests.receivers import mosquitto_or_skip


def message(number: int, place: int | None = None, duplicate: bool = False) -> dict[str, Any]:
    return {"id": f"x-{number if place is None else place:03}", "image": f"camera#{number}", "duplicate": duplicate}


def test_every_kill_is_survived(capsys):
    mosquitto_or_skip()
    pytest.importorskip("paho.mqtt")
    assert main(["--messages", "120", "--kills", "3", "--no-save", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["kills"], result["accepted_frames"]) == (3, 120)
    assert (result["lost_frames"], result["arrived_again_without_a_mark"], result["out_of_order"]) == (0, 0, 0)
    assert result["distinct_messages"] >= 120


def test_what_is_wrong_is_noticed():
    tally = Tally(accepted=[0, 1, 2])
    right = [message(0), message(1), message(1, duplicate=True), message(2)]
    judged = judge_messages(tally, right)
    assert (judged["lost_frames"], judged["arrived_again"], judged["arrived_again_without_a_mark"]) == (0, 1, 0)
    assert judge_messages(tally, right[:3])["lost_frames"] == 1
    assert judge_messages(tally, [*right, message(2)])["arrived_again_without_a_mark"] == 1
    assert judge_messages(tally, [message(1), message(0), message(2)])["out_of_order"] == 1
    assert judge_messages(tally, [*right, message(0, place=2, duplicate=True)])["ids_of_two_frames"] == 1
    assert judge_messages(tally, [message(0, duplicate=True), *right[1:]])["marked_and_arrived_once"] == 1
