"""The golden check: what it compares, when it runs, what it remembers, and that it refuses."""

from __future__ import annotations

import base64
import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edge_effdet.artifacts import Detections, Engine, ModelSpec
from edge_effdet.artifacts.reading import from_json, to_json
from edge_effdet.artifacts.record import Fingerprint, Golden, Verdict
from edge_effdet.errors import EngineError
from edge_effdet.runtime import detector, golden
from edge_effdet.runtime.agreement import FROM_REFERENCE, detection_distance, measure_agreement
from edge_effdet.runtime.golden import (
    MOST_BYTES,
    PICTURES,
    check_engine,
    decode_pictures,
    draw_pictures,
    encode_picture,
    make_golden,
    read_golden,
    require_same_results,
    without_pictures,
)
from tests.backends import BrightBoxRunner
from tests.records import make_record

SPEC = ModelSpec("tf_efficientdet_lite0", (64, 64), ("thing", "other"), (1, 2))
BUILT_ON = Fingerprint("openvino", "2026.4.1", "x86", ("avx2", "avx512_vnni"))
HERE = Fingerprint("openvino", "2026.4.1", "x86", ("avx2",))


def found(*rows):
    """Detections of ``(x, score, class_id)``: boxes of 10 x 10 pixels."""
    boxes = np.array([[x, 0, x + 10, 10] for x, _, _ in rows], np.float32).reshape(-1, 4)
    return Detections(
        boxes, np.array([score for _, score, _ in rows], np.float32), np.array([each for _, _, each in rows], np.int32)
    )


def pictures():
    images = []
    for x in (4, 12, 20, 28):
        image = np.zeros((64, 64, 3), np.uint8)
        image[8:40, x : x + 24] = 255
        images.append(image)
    return images


@pytest.fixture
def engine(tmp_path: Path) -> Engine:
    """Proven on a machine with VNNI, by a runner that finds one box with a score of 0.8."""
    golden = make_golden(BrightBoxRunner(64, 1), SPEC, pictures(), "pictures", "int8", BUILT_ON)
    # As it comes back from the file.
    golden = from_json(Golden, json.loads(json.dumps(to_json(golden))))
    return with_record(Engine(tmp_path / "a.int8.onnx", SPEC, "openvino", "int8", "ab" * 32), golden=golden)


def with_record(engine: Engine, **changes) -> Engine:
    return replace(engine, record=replace(engine.record or make_record(spec=SPEC, precision="int8"), **changes))


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Another kind of machine, and where it keeps its answers."""
    monkeypatch.setattr(golden, "machine_fingerprint", lambda backend: HERE)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "edge_effdet" / "golden"


class Counted(BrightBoxRunner):
    def run(self, feeds):
        Counted.count += 1
        return super().run(feeds)


@pytest.fixture
def runner() -> Counted:
    Counted.count = 0
    return Counted(64, 1)


def test_distance():
    one = [found((0, 0.8, 0), (30, 0.2, 1))]
    assert detection_distance(one, one) == 0
    # A box without an area has no overlap with itself, and is the same all the same.
    flat = Detections(np.array([[9, 9, 9, 30]], np.float32), np.array([0.8], np.float32), np.array([0], np.int32))
    assert detection_distance([flat], [flat]) == 0
    moved = replace(flat, boxes=flat.boxes + 2)
    assert detection_distance([flat], [moved]) == pytest.approx(1)
    assert detection_distance(one, [found((0, 0.7, 0), (30, 0.2, 1))]) == pytest.approx(0.1)
    # Another class, or a box elsewhere, is not the same object.
    assert detection_distance(one, [found((0, 0.8, 1), (30, 0.2, 1))]) == pytest.approx(0.8)
    assert detection_distance(one, [found((6, 0.8, 0), (30, 0.2, 1))]) == pytest.approx(0.8)
    assert detection_distance(one, [found()]) == 1
    # What is made up counts as what is missed.
    assert detection_distance([found((0, 0.8, 0))], [found((0, 0.8, 0), (30, 0.8, 0))]) == pytest.approx(0.5)
    assert detection_distance([found()], [found()]) == 0
    assert detection_distance([found()], [found((0, 0.5, 0))]) == 1


def test_a_low_score_is_not_judged_more_mildly():
    for scale in (1.0, 0.05):
        near = [found((0, 0.9 * scale, 0))], [found((0, 0.45 * scale, 0))]
        assert detection_distance(*near) == pytest.approx(0.5)


def test_golden_pictures_travel_and_are_found_again(engine, here, runner):
    read = read_golden(engine)
    assert read is not None and len(read.pictures) == PICTURES and read.fingerprint == BUILT_ON
    assert all(len(base64.b64decode(picture.jpeg)) <= MOST_BYTES for picture in read.pictures)
    assert [image.shape for image in decode_pictures(engine, read)] == [(64, 64, 3)] * PICTURES
    assert check_engine(runner, engine, read).distance < 0.01


def test_pictures_of_any_content_stay_small():
    noise = np.random.default_rng(0).integers(0, 256, (640, 640, 3), dtype=np.uint8)
    assert len(encode_picture(noise)) <= MOST_BYTES
    for picture in draw_pictures((1536, 1536), 1):
        assert picture.shape == (1536, 1536, 3) and len(encode_picture(picture)) <= MOST_BYTES


def test_drawn_pictures_are_the_same_everywhere():
    first, again, other = draw_pictures((64, 96), 2), draw_pictures((64, 96), 2), draw_pictures((64, 96), 2, seed=1)
    assert [np.array_equal(a, b) for a, b in zip(first, again, strict=True)] == [True, True]
    assert not np.array_equal(first[0], first[1]) and not np.array_equal(first[0], other[0])


def test_it_runs_once_on_another_machine_and_is_remembered(engine, here, runner):
    assert require_same_results(runner, engine).passed
    assert Counted.count == PICTURES
    again = require_same_results(runner, engine)
    assert again.passed and again.from_cache and Counted.count == PICTURES
    (answer,) = here.iterdir()
    assert [each.stat().st_mode & 0o077 for each in (answer, here)] == [0, 0], (
        "others can write what vouches for an engine"
    )


def test_it_does_not_run_where_the_engine_was_proven(engine, here, runner, monkeypatch):
    monkeypatch.setattr(golden, "machine_fingerprint", lambda backend: BUILT_ON)
    assert require_same_results(runner, engine) is None
    assert Counted.count == 0 and not here.exists()


def test_an_engine_that_finds_something_else_is_refused_each_time(engine, here):
    wrong = BrightBoxRunner(64, 1, score=0.4)
    for _ in range(2):
        with pytest.raises(EngineError) as refused:
            require_same_results(wrong, engine)
    said = str(refused.value)
    assert "the scores differ by 50 %, and 10 % are allowed" in said
    assert "(x86 avx2 without VNNI, openvino 2026.4.1) than where it was proven (x86 avx2 with VNNI" in said
    assert "INT8 sums saturate" in said and "verify --engine" in said and "`self_check=False`" in said
    assert not here.exists()


def sign(changed: Golden) -> Golden:
    return replace(changed, sha256=golden._golden_sha256(changed))


def test_an_answer_that_others_may_write_is_not_believed(engine, here, runner):
    require_same_results(runner, engine)
    here.chmod(0o777)
    assert not require_same_results(runner, engine).from_cache
    assert require_same_results(runner, engine).from_cache, "the folder was not made private again"


def test_a_refusal_between_machines_that_read_alike_names_what_differs(engine, here, monkeypatch):
    monkeypatch.setattr(
        golden, "machine_fingerprint", lambda backend: replace(BUILT_ON, instructions=("avx2", "avx512_vnni", "f16c"))
    )
    with pytest.raises(EngineError, match="which differs in f16c"):
        require_same_results(BrightBoxRunner(64, 1, score=0.4), engine)


def tamper(path: Path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
    "harm",
    [
        lambda path: path.write_text("no JSON"),
        lambda path: path.write_bytes(b"\xff\xfe"),
        lambda path: path.write_text("[]"),
        lambda path: tamper(path, distance=0.0),
        lambda path: tamper(path, engine_sha256="cd" * 32),
        lambda path: tamper(path, distance="none"),
        lambda path: (path.unlink(), path.mkdir()),
    ],
)
def test_an_answer_that_was_tampered_with_is_not_believed(engine, here, runner, harm):
    slightly = Counted(64, 1, score=0.78)
    require_same_results(slightly, engine)
    Counted.count = 0
    (answer,) = here.iterdir()
    harm(answer)
    assert require_same_results(slightly, engine).passed
    assert Counted.count == PICTURES


def test_an_answer_of_another_user_is_not_believed(engine, here, runner, monkeypatch):
    require_same_results(runner, engine)
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    assert not require_same_results(runner, engine).from_cache


def test_an_answer_of_other_golden_pictures_is_not_believed(engine, here, runner):
    require_same_results(runner, engine)
    other = make_golden(runner, SPEC, pictures()[:2], "pictures", "int8", BUILT_ON)
    Counted.count = 0
    assert not require_same_results(runner, with_record(engine, golden=other)).from_cache
    assert Counted.count == 2


@pytest.mark.parametrize("where", ["file", "no home"])
def test_a_machine_that_cannot_keep_answers_checks_each_time(engine, here, runner, monkeypatch, tmp_path, where):
    if where == "file":
        (tmp_path / "file").write_text("")
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    else:
        monkeypatch.delenv("XDG_CACHE_HOME")
        monkeypatch.setattr(Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("no home")))
    for _ in range(2):
        assert not require_same_results(runner, engine).from_cache


def test_an_engine_without_golden_pictures_is_loaded_with_one_warning(engine, here, runner, caplog):
    bare = with_record(engine, golden=None)
    assert require_same_results(runner, bare) is None
    assert [record.getMessage().count("build it again") for record in caplog.records] == [1]


def test_an_engine_built_with_none_warns_on_another_machine_only(engine, here, runner, caplog):
    none = make_golden(runner, SPEC, [], "none", "int8", HERE)
    assert require_same_results(runner, with_record(engine, golden=none)) is None
    assert not caplog.records
    elsewhere = make_golden(runner, SPEC, [], "none", "int8", BUILT_ON)
    assert require_same_results(runner, with_record(engine, golden=elsewhere)) is None
    assert "none were wanted when it was built" in caplog.text and "another kind of machine" in caplog.text


def test_an_engine_over_its_budget_is_named_at_each_load(engine, here, runner, caplog):
    gate = Verdict(
        passed=False,
        decided_by="drop",
        max_ap_drop=1.0,
        budget_was="default",
        text="it loses 12.00 points of AP, and 1 are allowed",
    )
    require_same_results(runner, with_record(engine, gate=gate))
    assert "did not pass the accuracy gate when it was built: it loses 12.00" in caplog.text


def with_picture(changed: Golden, **changes) -> Golden:
    first, *others = changed.pictures
    return replace(changed, pictures=(replace(first, **changes), *others))


SMALL = base64.b64encode(encode_picture(np.zeros((8, 8, 3), np.uint8))).decode()
LARGE = base64.b64encode(encode_picture(np.zeros((4000, 4000, 3), np.uint8))).decode()


@pytest.mark.parametrize(
    "harm",
    [
        lambda golden: with_picture(golden, scores=(0.1,)),
        lambda golden: with_picture(golden, jpeg="????"),
        lambda golden: replace(golden, tolerance=10.0),
        lambda golden: replace(golden, pictures=()),
        lambda golden: replace(golden, fingerprint=HERE),
        lambda golden: replace(golden, sha256=""),
        # The digest may be right, and the content wrong all the same.
        lambda golden: sign(with_picture(golden, jpeg="AAAA")),
        lambda golden: sign(with_picture(golden, jpeg="????")),
        lambda golden: sign(with_picture(golden, jpeg=SMALL)),
        lambda golden: sign(with_picture(golden, jpeg=LARGE)),
        lambda golden: sign(with_picture(golden, boxes=((float("nan"), 0.0, 1.0, 1.0),))),
        lambda golden: sign(with_picture(golden, scores=(0.5, 0.4, 0.3))),
    ],
)
def test_golden_pictures_that_were_changed_are_refused(engine, here, runner, harm):
    changed = with_record(engine, golden=harm(engine.record.golden))
    with pytest.raises(EngineError, match=r"golden pictures in .*a\.int8\.onnx\.json are damaged"):
        require_same_results(runner, changed)


def test_what_is_printed_leaves_the_pictures_out(engine):
    printed = without_pictures(engine.record)
    assert "jpeg" not in json.dumps(printed) and "jpeg" in json.dumps(to_json(engine.record))
    assert tuple(printed["golden"]["pictures"][0]["scores"]) == engine.record.golden.pictures[0].scores
    assert without_pictures(replace(engine.record, golden=None))["golden"] is None


def test_agreement_tells_what_a_backend_does_from_what_rounding_does():
    reference, rounded, spoilt = [found((0, 0.8, 0))], [found((0, 0.7, 0))], [found((0, 0.4, 0))]
    assert measure_agreement(reference, rounded, rounded, "the FP32 graph", "int8").right
    # The backend did not compute its own graph, near as it is to FP32.
    saturated = measure_agreement(reference, rounded, [found((0, 0.6, 0))], "the FP32 graph", "int8")
    assert saturated.distance < FROM_REFERENCE and not saturated.backend_right and not saturated.right
    assert (
        "on 1 picture its scores differ from those of its own graph, computed exactly, by 14 %, and 10 %"
        in saturated.text
    )
    # It did, and rounding has spoilt the graph: there is no exact backend that would make that right.
    rounding = measure_agreement(reference, spoilt, spoilt, "the FP32 graph", "int8")
    assert rounding.backend_right and not rounding.right
    assert "differ from those of the FP32 graph by 50 %, and 30 % are allowed" in rounding.text
    assert not measure_agreement(reference, spoilt, [found()], "the FP32 graph", "int8").right
    # What is found in drawn pictures is mostly noise, so only the backend is judged by it.
    assert measure_agreement(reference, spoilt, spoilt, "the FP32 graph", "int8", drawn=True).right
    assert not measure_agreement(reference, spoilt, reference, "the FP32 graph", "int8", drawn=True).right


def test_a_score_at_the_floor_is_not_lost_to_rounding():
    one, other = [found((0, 0.3, 0), (30, 0.0101, 0))], [found((0, 0.3, 0), (30, 0.0099, 0))]
    assert detection_distance(one, other) < 0.001
    # And what is below it on both sides does not count.
    assert detection_distance(one, [found((0, 0.3, 0), (30, 0.0101, 0), (50, 0.009, 0))]) == 0


def test_pictures_in_which_nothing_is_found_are_not_golden(engine, here, runner, caplog):
    golden = make_golden(BrightBoxRunner(64, 1, score=0.05), SPEC, pictures(), "pictures", "int8", BUILT_ON)
    assert golden.kind == "none" and not golden.pictures and "next to nothing" in caplog.text
    assert require_same_results(runner, with_record(engine, golden=golden)) is None
    assert "carries no golden pictures (it finds next to nothing in them)" in caplog.text


@pytest.mark.parametrize("checked", [True, False])
def test_the_detector_checks_when_it_loads(engine, here, monkeypatch, caplog, checked):
    closed = []

    class Wrong(BrightBoxRunner):
        def close(self):
            closed.append(True)

    monkeypatch.setattr(detector, "load_runner", lambda engine, options: Wrong(64, 1, score=0.4))
    if checked:
        with pytest.raises(EngineError, match="finds other objects"):
            detector.Detector.load(engine)
        assert closed == [True]
    else:
        with detector.Detector.load(engine, self_check=False):
            assert "without its golden check, as asked" in caplog.text
