"""What evaluate says and writes, with an engine that finds one disc in the same place of any picture."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edge_effdet import evaluate
from edge_effdet.artifacts import Detections, Engine, ModelSpec, file_sha256, load_engine, write_json
from edge_effdet.artifacts.record import Calibration
from edge_effdet.data.base import Dataset, match_classes, samples_manifest
from edge_effdet.data.registry import read_dataset
from edge_effdet.evaluation.metrics import CocoMetrics
from edge_effdet.evaluation.report import coco_result_list, evaluation_text, own_category_ids, rank_worst
from edge_effdet.evaluation.run import Evaluation
from tests.records import make_record, write_record

FILES = {"metrics.json", "detections.json", "confusion.txt", "confusion.png", "worst.png"}
SIX = ("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large")


@pytest.fixture
def engine(tmp_path: Path) -> Path:
    """Finds a disc at 0 0 40 40 with 0.9 and a bar at 60 30 70 60 with 0.2, of pictures of 60 x 80."""
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    helper, types = onnx.helper, onnx.TensorProto
    outputs = {
        "boxes": (types.FLOAT, np.array([[[0, 0, 32, 32], [48, 24, 56, 48]]], np.float32)),
        "scores": (types.FLOAT, np.array([[0.9, 0.2]], np.float32)),
        "class_ids": (types.INT32, np.array([[1, 0]], np.int32)),
    }
    graph = helper.make_graph(
        [
            helper.make_node("Constant", [], [name], value=onnx.numpy_helper.from_array(array))
            for name, (_, array) in outputs.items()
        ],
        "tiny",
        [helper.make_tensor_value_info("images", types.UINT8, [1, 3, 64, 64])],
        [helper.make_tensor_value_info(name, kind, array.shape) for name, (kind, array) in outputs.items()],
    )
    path = tmp_path / "engine" / "tiny.onnx"
    path.parent.mkdir()
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
    spec = ModelSpec("tiny", (64, 64), ("bar", "disc", "cone"), (1, 2, 3))
    record = make_record(spec=spec, engine=path.name, engine_sha256=file_sha256(path))
    write_record(Engine(path, spec, record.backend, record.precision, record.engine_sha256, record))
    return path


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    """Three pictures with a disc where the engine says, one of them with a bar too; ids that are nobody else's."""
    root = tmp_path / "coco"
    (root / "images").mkdir(parents=True)
    for number in (7, 8, 9):
        Image.fromarray(np.full((60, 80, 3), 100, np.uint8)).save(root / "images" / f"{number}.jpg")
    boxes = [(7, 12, [0, 0, 40, 40]), (8, 12, [0, 0, 38, 40]), (9, 12, [0, 0, 40, 40]), (8, 30, [60, 30, 10, 30])]
    annotations = [
        {"id": number, "image_id": image, "category_id": category, "bbox": box, "area": 1, "iscrowd": 0}
        for number, (image, category, box) in enumerate(boxes, 1)
    ]
    content = {
        "images": [{"id": number, "file_name": f"{number}.jpg", "height": 60, "width": 80} for number in (7, 8, 9)],
        "annotations": annotations,
        "categories": [{"id": 30, "name": "Bar"}, {"id": 12, "name": "disc"}],
    }
    write_json(root / "annotations" / "instances_test.json", content)
    return root


def test_the_report_of_an_engine(engine: Path, coco: Path, tmp_path: Path, capsys):
    output = tmp_path / "judged"
    command = ["--engine", str(engine), "--data", str(coco), "--output", str(output), "--json"]
    assert evaluate.main(command) == 0
    printed = json.loads(capsys.readouterr().out)
    assert {*SIX, "images", "engine_sha256", "per_class", "per_class_AP50", "boxes_per_class"} <= set(printed)
    assert printed["boxes_per_class"] == {"bar": 1, "disc": 3}
    assert printed["per_class_AP50"] == pytest.approx({"bar": 1 / 2, "disc": 1}, abs=0.01)
    assert {path.name for path in output.iterdir()} == {*FILES, "pictures"}
    written = json.loads((output / "metrics.json").read_text())
    assert printed.items() <= written.items()
    # The bar's score is below the threshold of the confusion matrix, so it is missed in picture 8: the worst.
    assert written["confusion"] == {
        "classes": ["bar", "disc", "cone"],
        "counts": [[0, 0, 0, 1], [0, 3, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]],
    }
    first = {"file": "pictures/001_8.jpg", "image_id": "8", "missed": 1, "false": 0, "confused": 0}
    assert written["pictures"][0] == first
    assert sorted(path.name for path in (output / "pictures").iterdir()) == ["001_8.jpg", "002_7.jpg", "003_9.jpg"]
    assert (output / "confusion.txt").read_text().split()[:6] == ["truth", "\\", "predicted", "bar", "disc", "missed"]


def test_the_result_list_is_what_cocos_tools_take_with_the_data_sets_own_ids(engine: Path, coco: Path, tmp_path: Path):
    faster_coco_eval = pytest.importorskip("faster_coco_eval")
    output = tmp_path / "judged"
    assert evaluate.main(["--engine", str(engine), "--data", str(coco), "--output", str(output)]) == 0
    rows = json.loads((output / "detections.json").read_text())
    assert rows[0] == {"image_id": 7, "category_id": 12, "bbox": [0, 0, 40, 40], "score": 0.9}
    truth = faster_coco_eval.COCO(str(coco / "annotations" / "instances_test.json"))
    judged = faster_coco_eval.COCOeval_faster(truth, truth.loadRes(rows), iouType="bbox")
    judged.run()
    metrics = json.loads((output / "metrics.json").read_text())
    assert [metrics["AP"], metrics["AP50"]] == pytest.approx(judged.stats[:2], abs=1e-6)


def test_the_text_has_a_row_a_class_that_has_boxes(engine: Path, coco: Path, capsys):
    assert evaluate.main(["--engine", str(engine), "--data", str(coco)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["images", *SIX]
    assert lines[4].split() == ["class", "boxes", "AP", "AP50", "missed", "false", "most", "confused", "with"]
    assert [line.split()[0] for line in lines[6:8]] == ["bar", "disc"]
    assert lines[6].split()[1::3] == ["1", "1"] and lines[6].split()[-1] == "-"
    assert lines[8].startswith("missed, false, confused: at a score of 0.3")


def test_without_pictures_no_picture_is_written(engine: Path, tiny_voc: Path, tmp_path: Path):
    output = tmp_path / "judged"
    command = ["--engine", str(engine), "--data", str(tiny_voc), "--output", str(output), "--pictures", "0"]
    assert evaluate.main(command) == 0
    assert {path.name for path in output.iterdir()} == FILES - {"worst.png"}
    rows = json.loads((output / "detections.json").read_text())
    assert {row["image_id"] for row in rows} == {"scene_10", "scene_11"}, "ids of a VOC folder are names"


def test_a_fold_is_judged_on_the_images_that_it_holds_out(engine: Path, tmp_path: Path, capsys):
    root = tmp_path / "folded"
    (root / "images").mkdir(parents=True)
    rows = ["image_id,x_min,y_min,x_max,y_max,label,fold"]
    for number in range(6):
        Image.fromarray(np.full((60, 80, 3), 100, np.uint8)).save(root / "images" / f"{number}.jpg")
        # The engine is right in the pictures of fold 1 only.
        rows.append(
            f"{number}.jpg,{0 if number % 3 == 1 else 41},0,{40 if number % 3 == 1 else 79},40,disc,{number % 3}"
        )
    (root / "boxes.csv").write_text("\n".join(rows) + "\n")
    for fold, right in ((1, 1.0), (2, 0.0)):
        command = ["--engine", str(engine), "--data", str(root / "boxes.csv"), "--fold", str(fold), "--json"]
        assert evaluate.main(command) == 0
        printed = json.loads(capsys.readouterr().out)
        assert (printed["images"], printed["split"]) == (2, "val")
        assert printed["AP50"] == pytest.approx(right)
    assert evaluate.main([*command[:-2], "7"]) == 2
    assert "7" in capsys.readouterr().err.splitlines()[-1]


def test_mirrored_views_are_fused_for_an_engine_too(engine: Path, coco: Path, capsys):
    command = ["--engine", str(engine), "--data", str(coco), "--tta", "horizontal", "--json"]
    assert evaluate.main(command) == 0
    printed = json.loads(capsys.readouterr().out)
    # The engine sees the disc at the left of the mirrored picture too, which is at the right of the picture.
    assert printed["tta"] == "horizontal"
    assert 0 < printed["per_class_AP50"]["disc"] < 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--pictures", "-1"], "--pictures -1 makes no sense"),
        (["--batch-size", "0"], "--batch-size 0 makes no sense"),
        (["--output", "{file}/judged"], "Cannot write"),
        (["--fold", "0"], "fold"),
    ],
)
def test_what_makes_no_sense_is_refused(arguments, said, engine: Path, coco: Path, tmp_path: Path, capsys):
    (tmp_path / "file").write_text("")
    given = [argument.format(file=tmp_path / "file") for argument in arguments]
    assert evaluate.main(["--engine", str(engine), "--data", str(coco), *given]) == 2
    assert said in capsys.readouterr().err.splitlines()[-1]


def test_an_engine_and_a_checkpoint_at_once_are_bad_usage():
    with pytest.raises(SystemExit) as caught:
        evaluate.main(["--engine", "a", "--checkpoint", "b", "--data", "c"])
    assert caught.value.code == 2


def matched(coco: Path) -> tuple[Dataset, Dataset, ModelSpec]:
    dataset = read_dataset(coco)
    spec = ModelSpec("tiny", (64, 64), ("cone", "disc", "bar"), (12, 30, 5))
    return dataset, match_classes(dataset, spec), spec


def test_own_ids_go_by_name_and_a_class_that_the_data_set_lacks_has_none(coco: Path):
    dataset, after, _ = matched(coco)
    # The model's own id of cone is 12, which is the disc of the data set.
    assert own_category_ids(dataset, after) == {1: 12, 2: 30}
    unlabelled = replace(
        dataset,
        splits={
            name: tuple(
                replace(sample, boxes=sample.boxes[:0], class_ids=sample.class_ids[:0], ignore=sample.ignore[:0])
                for sample in samples
            )
            for name, samples in dataset.splits.items()
        },
    )
    assert own_category_ids(unlabelled, replace(after, splits=unlabelled.splits)) == {1: 12, 2: 30}


def test_detections_of_a_class_without_an_id_are_left_out(coco: Path):
    dataset, after, spec = matched(coco)
    samples = after.all_samples()
    found = [
        Detections(np.ones((3, 4), np.float32), np.array([0.9, 0.8, 0.7], np.float32), np.array([0, 1, 2], np.int32))
        for _ in samples
    ]
    metrics = CocoMetrics(*[0.5] * 6, {}, 3)
    evaluation = Evaluation(
        samples, found, spec, metrics, np.zeros((4, 4), np.int64), [(0, 1, 0), (2, 0, 1), (3, 0, 0)]
    )
    rows = coco_result_list(evaluation, own_category_ids(dataset, after), numbers=True)
    assert [row["category_id"] for row in rows] == [12, 30] * 3
    assert [row["image_id"] for row in rows] == [7, 7, 8, 8, 9, 9]
    assert rank_worst(evaluation) == [1, 2, 0]


def test_ninety_classes_stay_readable():
    names = tuple(f"class {index}" for index in range(90))
    spec = ModelSpec("tiny", (64, 64), names, tuple(range(1, 91)))
    matrix = np.zeros((91, 91), np.int64)
    matrix[3, 3], matrix[3, 5], matrix[5, 90] = 4, 2, 1
    per_class = {"class 3": 0.5, "class 5": float("nan")}
    metrics = CocoMetrics(*[0.5] * 6, per_class, 2, per_class, {"class 3": 6, "class 5": 1})
    rows = evaluation_text(Evaluation([], [], spec, metrics, matrix, [])).splitlines()[6:-1]
    assert rows[0].split() == ["class", "3", "6", "50.0", "50.0", "0", "0", "class", "5", "(2)"]
    assert rows[1].split() == ["class", "5", "1", "-", "-", "1", "0", "-"]
    assert len(rows) == 2


def test_data_without_splits_are_judged_whole_and_the_path_is_as_it_was_given(
    engine: Path, tiny_voc: Path, tmp_path: Path, monkeypatch, capsys
):
    for name in ("Annotations", "JPEGImages"):
        (tmp_path / "flat").mkdir(exist_ok=True)
        (tmp_path / "flat" / name).symlink_to(tiny_voc / name)
    opened = load_engine(engine)
    manifest = samples_manifest(read_dataset(tmp_path / "flat").splits["train"])
    calibration = Calibration(
        method="max", images=10, split="train", choice="random", seed=0, manifest_sha256="", manifest=manifest
    )
    write_record(replace(opened, record=replace(opened.require_record(), calibration=calibration)))
    monkeypatch.chdir(tmp_path)
    words = ["--engine", "engine/tiny.onnx", "--data", "flat"]
    capsys.readouterr()
    assert evaluate.main([*words, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert (printed["images"], printed["split"], printed["engine"]) == (12, "all", "engine/tiny.onnx")
    assert [remark.split(",")[0] for remark in printed["remarks"]] == ["10 of these 12 images calibrated tiny.onnx"]
    assert evaluate.main(words) == 0
    assert "too good; give --split val to judge on the others" in capsys.readouterr().out
    assert evaluate.main([*words, "--split", "val", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert (printed["images"], printed["split"], printed["remarks"]) == (2, "val", [])


def test_a_picture_of_the_longest_name_has_its_report(engine: Path, coco: Path, tmp_path: Path):
    name = "ö" * 125 + "x"
    (coco / "images" / "7.jpg").rename(coco / "images" / f"{name}.jpg")
    file = coco / "annotations" / "instances_test.json"
    file.write_text(file.read_text().replace('"7.jpg"', json.dumps(f"{name}.jpg")))
    output = tmp_path / "judged"
    assert evaluate.main(["--engine", str(engine), "--data", str(coco), "--output", str(output)]) == 0
    assert f"002_{'ö' * 100}.jpg" in {path.name for path in (output / "pictures").iterdir()}
