"""Specs, detections, engines and their hashes, atomic files."""

from __future__ import annotations

import hashlib
import io
import json
import os
import stat
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_effdet.artifacts import (
    AnchorSpec,
    Detections,
    ModelSpec,
    PreprocessSpec,
    atomic_output,
    engine_json_path,
    file_sha256,
    files,
    load_engine,
    text_sha256,
    write_json,
    write_text,
)
from edge_effdet.artifacts.reading import to_json
from edge_effdet.errors import EngineError, InputError
from tests.records import make_record, write_record

SPEC = ModelSpec(
    "tf_efficientdet_lite0",
    (96, 160),
    ("disc", "bär"),
    (3, 7),
    AnchorSpec(aspect_ratios=((1.0, 1.0), (1.4, 0.7))),
    PreprocessSpec((0.5, 0.4, 0.3), (0.2, 0.3, 0.4)),
    "sum",
)


def make_detections(count=3):
    boxes = np.arange(count * 4, dtype=np.float32).reshape(count, 4)
    return Detections(boxes, np.linspace(0.9, 0.1, count, dtype=np.float32), np.zeros(count, np.int32))


def write_engine(folder, content=b"compiled", **changes):
    path = folder / "tiny.engine"
    path.write_bytes(content)
    record = to_json(make_record(spec=SPEC, precision="fp16", engine_sha256=hashlib.sha256(content).hexdigest()))
    record |= changes
    write_json(engine_json_path(path), record)
    return path


def test_spec_survives_json():
    assert ModelSpec.from_dict(json.loads(json.dumps(SPEC.to_dict()))) == SPEC


@given(
    size=st.tuples(st.integers(1, 64), st.integers(1, 64)),
    names=st.lists(st.text(min_size=1), min_size=1, max_size=5, unique=True),
    mean=st.tuples(*[st.floats(0, 1)] * 3),
    ratios=st.lists(st.tuples(st.floats(0.1, 4), st.floats(0.1, 4)), min_size=1, max_size=3),
)
@settings(max_examples=25, deadline=None)
def test_any_spec_survives_json(size, names, mean, ratios):
    spec = ModelSpec(
        "any",
        (32 * size[0], 32 * size[1]),
        tuple(names),
        tuple(range(len(names))),
        AnchorSpec(aspect_ratios=tuple(ratios)),
        PreprocessSpec(mean=mean),
    )
    assert ModelSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec


@pytest.mark.parametrize(
    "key", ["name", "image_size", "class_names", "category_ids", "anchors", "preprocess", "fusion"]
)
def test_a_spec_without_a_field_is_refused_by_its_name(key):
    raw = SPEC.to_dict()
    del raw[key]
    with pytest.raises(InputError, match=rf"damaged.*{key}"):
        ModelSpec.from_dict(raw)


@pytest.mark.parametrize(
    "change",
    [
        {"image_size": [320]},
        {"image_size": "wide"},
        {"anchors": {"aspect_ratios": [[1, 1]], "surplus": 1}},
        {"anchors": None},
        {"category_ids": ["x", "y"]},
        {"preprocess": {}},
    ],
)
def test_a_spec_with_a_field_of_another_kind_is_refused(change):
    with pytest.raises(InputError, match="damaged"):
        ModelSpec.from_dict({**SPEC.to_dict(), **change})


@pytest.mark.parametrize("raw", [None, [], "text", 3])
def test_what_is_no_object_is_no_spec(raw):
    with pytest.raises(InputError, match="damaged"):
        ModelSpec.from_dict(raw)


def test_a_spec_needs_one_id_a_class():
    with pytest.raises(InputError, match="names 2 classes but 1 category ids"):
        replace(SPEC, category_ids=(1,))
    with pytest.raises(InputError, match="at least one class"):
        replace(SPEC, class_names=(), category_ids=())


def test_the_fill_colour_is_the_mean():
    assert PreprocessSpec().fill_color == (124, 116, 104)
    assert PreprocessSpec((0.0, 0.5, 1.0)).fill_color == (0, 128, 255)


def test_detections_above_a_threshold_include_it():
    found = make_detections()
    assert len(found) == 3
    kept = found.above(float(found.scores[1]))
    np.testing.assert_array_equal(kept.scores, found.scores[:2])
    np.testing.assert_array_equal(kept.boxes, found.boxes[:2])
    assert len(found.above(1.1)) == 0


def test_a_choice_of_detections_keeps_what_belongs_together():
    found = make_detections()
    assert found.track_ids is None
    assert found.above(0.2).track_ids is found.select(slice(1)).track_ids is None
    tracked = replace(found, track_ids=np.array([7, -1, 9], np.int32))
    assert tracked.above(float(found.scores[1])).track_ids.tolist() == [7, -1]
    chosen = tracked.select(np.array([False, True, True]))
    assert chosen.track_ids.tolist() == [-1, 9]
    np.testing.assert_array_equal(chosen.boxes, found.boxes[1:])
    np.testing.assert_array_equal(chosen.scores, found.scores[1:])
    assert tracked.select(slice(2)).track_ids.tolist() == [7, -1]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("boxes", np.zeros((3, 4))),
        ("boxes", np.zeros((2, 4), np.float32)),
        ("boxes", np.zeros((3, 5), np.float32)),
        ("class_ids", np.zeros(3, np.int64)),
        ("class_ids", np.zeros((3, 1), np.int32)),
        ("scores", np.zeros(3, np.float64)),
        ("track_ids", np.zeros(3, np.int64)),
        ("track_ids", np.zeros(2, np.int32)),
    ],
)
def test_detections_of_another_shape_or_type_are_refused(field, value):
    with pytest.raises(ValueError, match=rf"Detections\.{field} must be"):
        replace(make_detections(), **{field: value})


@pytest.mark.parametrize("field", ["boxes", "scores"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_detections_are_finite(field, value):
    broken = getattr(make_detections(), field).copy()
    broken.flat[0] = value
    with pytest.raises(ValueError, match="not finite"):
        replace(make_detections(), **{field: broken})


def test_an_engine_is_read_with_its_record(tmp_path):
    engine = load_engine(write_engine(tmp_path, target="a card"))
    assert (engine.spec, engine.backend, engine.precision) == (SPEC, "onnxruntime", "fp16")
    assert engine.record.target == "a card"
    assert engine.json_path == tmp_path / "tiny.engine.json"
    assert engine.sha256 == file_sha256(engine.path)


def test_a_changed_engine_is_refused(tmp_path):
    path = write_engine(tmp_path)
    path.write_bytes(b"compileD")
    with pytest.raises(EngineError, match=r"tiny\.engine is not the file that tiny\.engine\.json describes"):
        load_engine(path)


def test_a_missing_engine_and_a_missing_record_are_told_apart(tmp_path):
    with pytest.raises(EngineError, match=r"no engine at .*absent\.engine"):
        load_engine(tmp_path / "absent.engine")
    path = write_engine(tmp_path)
    engine_json_path(path).unlink()
    with pytest.raises(EngineError, match=r"no tiny\.engine\.json beside it"):
        load_engine(path)


def test_an_edited_record_is_refused(tmp_path):
    path = write_engine(tmp_path)
    # As an earlier version wrote it, without a digest over its fields.
    engine = load_engine(path)
    write_record(engine)
    assert load_engine(path) == engine
    text = engine_json_path(path).read_text()
    engine_json_path(path).write_text(text.replace('"disc"', '"disk"'))
    with pytest.raises(EngineError, match=r"tiny\.engine\.json is not an engine description .*somebody has changed it"):
        load_engine(path)


def test_a_record_deeper_than_python_reads_is_refused(tmp_path):
    path = write_engine(tmp_path)
    engine_json_path(path).write_text('{"format": 3, "spec": ' + "[" * 200_000 + "]" * 200_000 + "}")
    with pytest.raises(EngineError, match="is not an engine description"):
        load_engine(path)


@pytest.mark.parametrize(
    "change",
    [
        {"class_names": ["disc", "disc"]},
        {"preprocess": {"mean": [0.5, 0.5, 0.5], "std": [1.0, 0.0, 1.0]}},
        {"preprocess": {"mean": [float("inf"), 0.5, 0.5], "std": [1.0, 1.0, 1.0]}},
        {"anchors": {**to_json(AnchorSpec()), "anchor_scale": -4.0}},
        {"anchors": {**to_json(AnchorSpec()), "num_scales": 0}},
        {"anchors": {**to_json(AnchorSpec()), "max_level": 2}},
        {"anchors": {**to_json(AnchorSpec()), "aspect_ratios": [[1.0, float("nan")]]}},
        {"image_size": [-32, 64]},
    ],
)
def test_a_spec_that_makes_no_sense_is_refused(change):
    with pytest.raises(InputError) as refused:
        ModelSpec.from_dict({**SPEC.to_dict(), **change})
    assert str(refused.value).endswith(".") and "\n" not in str(refused.value)


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '"text"', '{"format": 3}', '{"format": 3, "spec": {}}', "\xff"])
def test_a_record_that_is_none_is_refused(tmp_path, text):
    path = write_engine(tmp_path)
    engine_json_path(path).write_bytes(text.encode("latin-1"))
    with pytest.raises(EngineError, match=r"tiny\.engine\.json is not an engine description"):
        load_engine(path)


@pytest.mark.parametrize("key", ["spec", "backend", "precision", "engine_sha256"])
def test_a_record_without_a_field_is_refused_by_its_name(tmp_path, key):
    path = write_engine(tmp_path)
    record = json.loads(engine_json_path(path).read_text())
    del record[key]
    write_json(engine_json_path(path), record)
    with pytest.raises(EngineError, match=f"{key} is missing"):
        load_engine(path)


@pytest.mark.parametrize("known", [1, 2, 99, "3", None])
def test_a_record_of_another_format_is_refused_with_the_way_out(tmp_path, known):
    path = write_engine(tmp_path, format=known)
    with pytest.raises(EngineError, match=rf"is of format {known!r}, .* reads format 3; install .* or build it again"):
        load_engine(path)


def test_hashes_are_sha256(tmp_path):
    content = bytes(range(256)) * 9000
    (tmp_path / "file").write_bytes(content)
    expected = hashlib.sha256(content).hexdigest()
    assert file_sha256(tmp_path / "file") == expected
    assert files._digest(io.BytesIO(content)) == expected, "what Python 3.10 takes"
    assert text_sha256("ä") == hashlib.sha256("ä".encode()).hexdigest()


def test_atomic_output_makes_folders_and_readable_files(tmp_path):
    path = tmp_path / "a" / "b" / "file.txt"
    previous = os.umask(0o022)
    try:
        write_text(path, "ä\n")
    finally:
        os.umask(previous)
    assert path.read_bytes() == "ä\n".encode()
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert list(path.parent.iterdir()) == [path]


def test_a_failure_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path / "file.txt"
    path.write_text("old")
    for error in (KeyboardInterrupt, ValueError):
        with pytest.raises(error), atomic_output(path) as temporary:
            temporary.write_text("half")
            raise error
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_killed_process_leaves_no_half_file(tmp_path):
    code = (
        "import os, sys; from pathlib import Path; from edge_effdet.artifacts import atomic_output\n"
        "with atomic_output(Path(sys.argv[1])) as temporary:\n"
        "    temporary.write_text('half')\n"
        "    os.kill(os.getpid(), 9)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "file.txt")])
    assert done.returncode == -9
    assert not (tmp_path / "file.txt").exists()


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match=r"Cannot write .*inside\.txt.*`output`"):
        write_text(tmp_path / "file" / "inside.txt", "text")


def test_a_target_that_is_a_folder_is_named_and_nothing_is_left(tmp_path):
    (tmp_path / "taken").mkdir()
    with pytest.raises(InputError, match=r"Writing .*taken failed"):
        write_text(tmp_path / "taken", "text")
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


def test_json_is_for_people_too(tmp_path):
    write_json(tmp_path / "file.json", {"name": "bär", "number": 1})
    assert (tmp_path / "file.json").read_text(encoding="utf-8") == '{\n  "name": "bär",\n  "number": 1\n}\n'
