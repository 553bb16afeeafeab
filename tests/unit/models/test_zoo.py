"""Every model name has a spec, the small models can be built, and their anchors are effdet's."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from effdet import EfficientDet
from effdet.anchors import Anchors
from effdet.config import set_config_writeable

from edge_effdet.errors import InputError, UsageError
from edge_effdet.models import zoo
from edge_effdet.models.detector import MAX_TOP_K, DetectionModule
from edge_effdet.models.zoo import (
    compound_scaling_table,
    create_network,
    effdet_config,
    model_names,
    model_spec,
)

DOCUMENTED = (
    *(f"tf_efficientdet_d{size}" for size in ("0", "1", "2", "3", "4", "5", "6", "7", "7x")),
    *(f"tf_efficientdet_lite{size}" for size in range(5)),
    "efficientdet_d0",
)
# EfficientDet, arXiv 1911.09070, table 1: input size, BiFPN channels, BiFPN layers, head layers.
PAPER = {
    "d0": (512, 64, 3, 3),
    "d1": (640, 88, 4, 3),
    "d2": (768, 112, 5, 3),
    "d3": (896, 160, 6, 4),
    "d4": (1024, 224, 7, 4),
    "d5": (1280, 288, 7, 4),
    "d6": (1280, 384, 8, 5),
    "d7": (1536, 384, 8, 5),
}


@pytest.mark.parametrize("name", model_names())
def test_every_name_has_a_spec(name):
    spec = model_spec(name)
    assert spec.name == name
    assert len(spec.class_names) == len(spec.category_ids) == 90
    assert all(side % 32 == 0 and side >= 256 for side in spec.image_size)
    assert spec.fusion in ("fast", "softmax", "sum")
    assert spec.anchors.min_level == 3
    assert spec.anchors.max_level in (7, 8)
    assert len(spec.anchors.aspect_ratios) == 3
    assert all(width * height == pytest.approx(1, abs=0.03) for width, height in spec.anchors.aspect_ratios)
    detector = DetectionModule(torch.nn.Identity(), spec, top_k=5000)
    assert detector.top_k == MAX_TOP_K
    per_cell = spec.anchors.num_scales * len(spec.anchors.aspect_ratios)
    assert len(detector.anchors) == per_cell * cells(spec)


def cells(spec):
    height, width = spec.image_size
    levels = range(spec.anchors.min_level, spec.anchors.max_level + 1)
    return sum(-(-height // 2**level) * -(-width // 2**level) for level in levels)


def test_the_documented_names_are_there():
    assert set(DOCUMENTED) <= set(model_names())
    assert all("efficientdet" in name for name in model_names())


@pytest.mark.parametrize("size", PAPER)
def test_compound_scaling_is_the_papers(size):
    row = next(row for row in compound_scaling_table() if row.name == f"tf_efficientdet_{size}")
    assert (row.image_size[0], row.fpn_channels, row.fpn_repeats, row.head_repeats) == PAPER[size]
    assert row.levels == "P3-P7"


def test_the_table_is_printed(capsys):
    zoo.main()
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(model_names()) + 1
    assert lines[0].split()[:3] == ["model", "backbone", "size"]


@pytest.mark.parametrize(
    ("name", "fusion"),
    [("tf_efficientdet_d0", "fast"), ("tf_efficientdet_d6", "sum"), ("tf_efficientdet_lite0", "sum")],
)
def test_fusion_is_that_of_the_architecture(name, fusion):
    assert model_spec(name).fusion == fusion


@pytest.mark.parametrize("name", ["tf_efficientdet_lite0", "tf_efficientdet_d0"])
def test_the_models_own_fusion_is_effdets_network(name):
    """Names and shapes of all tensors stay as they are, so that older checkpoints and effdet's files load."""
    spec = model_spec(name, ("a",), image_size=(64, 64))
    config = effdet_config(name)
    set_config_writeable(config)
    config.image_size, config.num_classes = (64, 64), 1
    states = []
    for build in (lambda: create_network(spec), lambda: EfficientDet(config, pretrained_backbone=False)):
        torch.manual_seed(0)
        states.append(build().state_dict())
    assert list(states[0]) == list(states[1])
    assert all(torch.equal(ours, effdets) for ours, effdets in zip(*(state.values() for state in states), strict=True))


@pytest.mark.parametrize("fusion", ["fastattn", "Fast", "", "mean"])
def test_an_unknown_fusion_is_answered_with_the_list(fusion):
    with pytest.raises(
        UsageError,
        match=rf"no BiFPN fusion named '{fusion}'; the names are fast, softmax, unbounded, sum, and the default of .* is sum",
    ):
        model_spec("tf_efficientdet_lite0", fusion=fusion)
    with pytest.raises(InputError, match=f"'{fusion}' is none of fast, softmax, unbounded, sum"):
        replace(model_spec("tf_efficientdet_lite0"), fusion=fusion)


def test_normalisation_is_that_of_the_weights():
    assert model_spec("tf_efficientdet_d0").preprocess.mean == pytest.approx((0.485, 0.456, 0.406))
    lite = model_spec("tf_efficientdet_lite0").preprocess
    assert (lite.mean, lite.std) == ((0.5,) * 3, (0.5,) * 3)


def test_coco_classes_have_cocos_ids():
    spec = model_spec("tf_efficientdet_d0")
    names = dict(zip(spec.category_ids, spec.class_names, strict=True))
    assert (names[1], names[10], names[13], names[44], names[90]) == (
        "person",
        "traffic light",
        "stop sign",
        "bottle",
        "toothbrush",
    )
    assert len([name for name in spec.class_names if name.startswith("unused_")]) == 10
    assert names[12] == "unused_12"


def test_own_classes_are_numbered_from_1_or_keep_their_ids():
    assert model_spec("tf_efficientdet_lite0", ("a", "b")).category_ids == (1, 2)
    assert model_spec("tf_efficientdet_lite0", ("a", "b"), (5, 9)).category_ids == (5, 9)
    with pytest.raises(InputError, match="2 classes but 1 category ids"):
        model_spec("tf_efficientdet_lite0", ("a", "b"), (5,))
    with pytest.raises(InputError, match="at least one class"):
        model_spec("tf_efficientdet_lite0", ())


@pytest.mark.parametrize(
    ("name", "near"),
    [("tf_efficientdet_d00", "tf_efficientdet_d0"), ("tf_eficientdet_lite0", "tf_efficientdet_lite0")],
)
def test_a_misspelt_name_is_answered_with_the_right_one(name, near):
    with pytest.raises(UsageError, match=rf"no model named '{name}'; did you mean {near}\?"):
        model_spec(name)


def test_a_strange_name_is_answered_with_the_list():
    with pytest.raises(UsageError, match=r"no model named 'yolo'; the names are .*tf_efficientdet_lite0"):
        effdet_config("yolo")


@pytest.mark.parametrize(
    ("size", "nearest"), [((300, 320), "288x320"), ((320, 333), "320x320"), ((32, 32), "64x64"), ((0, 64), None)]
)
def test_a_size_that_does_not_fit_is_refused_with_one_that_does(size, nearest):
    with pytest.raises(UsageError, match=rf"{size[0]}x{size[1]} does not fit.*try {nearest or '64x64'}\."):
        model_spec("tf_efficientdet_lite0", image_size=size)


@pytest.mark.parametrize(("name", "size"), [("tf_efficientdet_lite0", (96, 160)), ("tf_efficientdet_d0", (128, 192))])
def test_a_built_network_has_the_levels_of_its_spec(name, size):
    spec = model_spec(name, ("a", "b", "c"), image_size=size)
    torch.manual_seed(0)
    network = create_network(spec).eval()
    with torch.inference_mode():
        classes, boxes = network(torch.zeros(2, 3, *size))
    levels = [(-(-size[0] // 2**level), -(-size[1] // 2**level)) for level in range(3, 8)]
    assert [tuple(level.shape) for level in classes] == [(2, 9 * 3, *shape) for shape in levels]
    assert [tuple(level.shape) for level in boxes] == [(2, 9 * 4, *shape) for shape in levels]


@pytest.mark.parametrize("size", [(64, 96), (64, 128), (128, 64)])
def test_a_size_whose_levels_effdet_cannot_halve_is_refused(size):
    """effdet pools to the next level only if both sides shrink. From 1 x 2 it does not, and the anchors would not fit."""
    with pytest.raises(UsageError, match=rf"{size[0]}x{size[1]} does not fit"):
        model_spec("tf_efficientdet_lite0", image_size=size)


def test_the_smallest_size_is_square():
    spec = model_spec("tf_efficientdet_lite0", ("a",), image_size=(64, 64))
    with torch.inference_mode():
        classes, _ = create_network(spec).eval()(torch.zeros(1, 3, 64, 64))
    assert [tuple(level.shape[2:]) for level in classes] == [(8, 8), (4, 4), (2, 2), (1, 1), (1, 1)]


def test_a_seed_gives_the_same_weights():
    spec = model_spec("tf_efficientdet_lite0", ("a",), image_size=(64, 64))
    weights = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        weights.append(create_network(spec).class_net.predict.conv_pw.weight)
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


@pytest.mark.parametrize("size", [(64, 64), (96, 160), (384, 640)])
def test_anchors_are_effdets(size):
    spec = model_spec("tf_efficientdet_lite0", image_size=size)
    config = effdet_config(spec.name)
    set_config_writeable(config)
    config.image_size = size
    reference = Anchors.from_config(config).boxes
    centers_sizes = DetectionModule(torch.nn.Identity(), spec).anchors
    centers, half = centers_sizes[:, :2], centers_sizes[:, 2:] / 2
    ours = torch.cat([centers - half, centers + half], dim=1)[:, [1, 0, 3, 2]]
    torch.testing.assert_close(ours, reference, rtol=0, atol=1e-3)


def test_anchors_by_hand():
    """The first cell of the finest level has its centre at 4, a base size of scale x 8, three octave scales and three ratios."""
    spec = model_spec("tf_efficientdet_lite0", image_size=(96, 128))
    first = DetectionModule(torch.nn.Identity(), spec).anchors[:9]
    base = 8 * spec.anchors.anchor_scale
    torch.testing.assert_close(first[:, :2], torch.full((9, 2), 4.0))
    expected = {
        (round(base * 2 ** (octave / 3) * width, 2), round(base * 2 ** (octave / 3) * height, 2))
        for octave in range(3)
        for width, height in spec.anchors.aspect_ratios
    }
    assert {(round(width, 2), round(height, 2)) for width, height in first[:, 2:].tolist()} == expected
