"""The effdet loop of the training benchmark trains, and the steps that are compared do the same work."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.peers import effdet_loop
from benchmarks.peers.effdet_loop import (
    LoopOptions,
    collate_batch,
    make_peer_step,
    make_training_loader,
)
from benchmarks.processes import run_module
from benchmarks.training import (
    OURS,
    average_ways,
    compare_steps,
    compare_training,
    random_batch,
    time_steps,
)
from edge_effdet.artifacts import ModelSpec
from edge_effdet.data.registry import read_dataset
from edge_effdet.errors import EdgeEffDetError
from edge_effdet.models.checkpoint import load_network, open_checkpoint
from edge_effdet.models.zoo import model_spec


@pytest.fixture
def spec() -> ModelSpec:
    return model_spec("tf_efficientdet_lite0", ("disc", "bar"), image_size=(64, 64))


def test_the_peer_trains_and_leaves_a_checkpoint_and_a_log(tiny_voc: Path, tmp_path: Path) -> None:
    flags = ["--data", str(tiny_voc), "--image-size", "64", "--epochs", "2", "--batch-size", "4"]
    assert effdet_loop.main([*flags, "--output", str(tmp_path), "--workers", "0"]) == 0

    checkpoint = open_checkpoint(tmp_path / "best.safetensors")
    assert checkpoint.spec.image_size == (64, 64) and set(checkpoint.spec.class_names) == {"disc", "bar"}
    load_network(checkpoint)
    log = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in log] == [1, 2]
    assert all(np.isfinite(row["loss"]) and row["images_per_second"] > 0 and -1 <= row["AP"] <= 1 for row in log)


def test_the_peer_refuses_to_validate_on_what_it_trains_on(
    tiny_voc: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--data", str(tiny_voc), "--val-split", "train", "--output", str(tmp_path)]
    assert effdet_loop.main(flags) == 2
    assert "--val-split" in capsys.readouterr().err


def test_the_loader_moves_the_boxes_with_the_picture(tiny_voc: Path) -> None:
    """At scale 1 the discs of a batch are red and its bars are blue, so pictures and boxes belong together."""
    dataset = read_dataset(tiny_voc)
    spec = model_spec("tf_efficientdet_lite0", dataset.class_names, image_size=(64, 64))
    options = LoopOptions(batch_size=8, scale_min=1.0, scale_max=1.0, workers=0)
    random.seed(0)
    loader = make_training_loader(dataset.splits["train"], spec, options)
    loader.collate_fn.anchor_labeler = None
    ((images, target),) = list(loader)

    assert images.dtype == torch.uint8 and tuple(images.shape) == (8, 3, 64, 64)
    red_over_blue = {name: [] for name in dataset.class_names}
    for image, boxes, classes in zip(images.int(), target["bbox"], target["cls"], strict=True):
        for box, number in zip(boxes[classes > 0], classes[classes > 0], strict=True):
            y, x = (int(box[0] + box[2]) // 2, int(box[1] + box[3]) // 2)
            red_over_blue[dataset.class_names[int(number) - 1]].append(int(image[0, y, x] - image[2, y, x]))
    assert len(red_over_blue["disc"]) == len(red_over_blue["bar"]) == 8
    assert min(red_over_blue["disc"]) > 50 and max(red_over_blue["bar"]) < -50


def test_labels_from_the_loader_are_those_of_the_step(spec: ModelSpec) -> None:
    batch = random_batch(spec, 2, seed=0)
    losses = []
    for labelled in (False, True):
        torch.manual_seed(0)
        step = make_peer_step(spec, labels_in_loader=labelled)
        torch.manual_seed(1)
        losses.append([step(collate_batch(*batch, spec, labelled=labelled)) for _ in range(2)])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert losses[0][0] != losses[0][1], "the step must change the weights"


def test_a_random_batch_holds_whole_boxes_of_known_classes(spec: ModelSpec) -> None:
    images, boxes, classes = random_batch(spec, 3, seed=5)
    assert images.shape == (3, 3, 64, 64) and torch.equal(images, random_batch(spec, 3, seed=5)[0])
    assert all((each >= 0).all() and (each <= 64).all() and (each[:, :2] < each[:, 2:]).all() for each in boxes)
    assert all(each.min() >= 1 and each.max() <= spec.num_classes for each in classes)


def test_our_step_is_compared_with_both_of_the_peers(spec: ModelSpec) -> None:
    rows = compare_steps(spec, 2, 2, "cpu", "fp32", ["--ema-decay", "0.9"])
    assert len(rows) == 3 and rows[-1]["way"] == OURS and rows[-1]["ours_over_this_speed"] == 1
    assert all(row["images_per_second"] > 0 and len(row["milliseconds"]) == 2 for row in rows)


def test_steps_take_turns() -> None:
    calls: list[str] = []
    times = time_steps({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, rounds=2, device="cpu")
    assert calls[-4:] == ["a", "b", "b", "a"] and [len(own) for own in times.values()] == [2, 2]


def test_means_and_ratios() -> None:
    numbers = {"AP": 0.2, "AP50": 0.4, "minutes": 2.0, "images_per_second": 8.0}
    peer = [{"way": "peer", **numbers}, {"way": "peer", **numbers, "AP": 0.0}]
    means = average_ways([*peer, {"way": OURS, **numbers, "images_per_second": 12.0}])
    assert means[0]["AP"] == pytest.approx(0.1) and means[0]["ours_over_this_AP"] == pytest.approx(2)
    assert means[0]["ours_over_this_images_per_second"] == pytest.approx(1.5)
    assert average_ways([{**peer[1], "AP50": 0.0}, {"way": OURS, **numbers}])[0]["ours_over_this_AP50"] is None


def test_a_run_that_fails_ends_the_comparison(tmp_path: Path) -> None:
    with pytest.raises(EdgeEffDetError, match=r"no_such_module --json ended with exit code 1"):
        run_module("benchmarks.no_such_module", [])
    with pytest.raises(EdgeEffDetError):
        compare_training({"ours": ["benchmarks.no_such_module"]}, [], [0], tmp_path)
