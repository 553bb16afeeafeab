"""The scale of the pixels is folded into the stem, exactly at padded borders too, but not where another node takes the picture."""

from __future__ import annotations

import numpy as np
import pytest

from edge_effdet.graph.rules.fold_pixel_scale import FoldPixelScale

RNG = np.random.default_rng(0)
SCALE = (1 / (255 * np.array([0.229, 0.224, 0.225], np.float32))).reshape(1, 3, 1, 1).astype(np.float32)
SHIFT = (-np.array([0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]).reshape(1, 3, 1, 1).astype(np.float32)


def stem_model(bench, scale=SCALE, shift=SHIFT, group=1, outputs=(), constant_weight=True, pads=(0, 0, 1, 1)):
    """``out = Conv(x * scale + shift)``, padded as TensorFlow does at stride 2."""
    arrays = {"scale": np.asarray(scale), "shift": np.asarray(shift)}
    inputs = {"x": [1, 3, 9, 11]}
    weight = RNG.normal(size=(6, 3 // group, 3, 3)).astype(np.float32)
    if constant_weight:
        arrays["stem.weight"] = weight
    else:
        inputs["stem.weight"] = list(weight.shape)
    nodes = [
        ("Mul", ["x", "scale"], ["scaled"], {}),
        ("Add", ["scaled", "shift"], ["normal"], {}),
        ("Conv", ["normal", "stem.weight"], ["out"], {"strides": [2, 2], "pads": list(pads), "group": group}),
    ]
    sides = [(9 + pads[0] + pads[2] - 3) // 2 + 1, (11 + pads[1] + pads[3] - 3) // 2 + 1]
    shapes = {"out": [1, 6, *sides], **{name: [1, 3, 9, 11] for name in outputs}}
    return bench.make_model(nodes, arrays, inputs, shapes)


@pytest.mark.parametrize("pads", [(0, 0, 1, 1), (1, 1, 1, 1), (0, 0, 0, 0)])
def test_the_scale_goes_into_the_weights(bench, pads):
    report = bench.apply(FoldPixelScale(), stem_model(bench, pads=pads))
    assert (report.fired, report.refused) == (1, ())
    assert bench.kinds() == {"Add": 1, "Conv": 1}
    # The shift that is left is the mean colour in pixels, which the zeros of the padding then stand for.
    offset = bench.initializers()["pixel_offset"].reshape(3)
    np.testing.assert_allclose(offset, [-0.485 * 255, -0.456 * 255, -0.406 * 255], rtol=1e-6)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"outputs": ["normal"]}, "another consumer"),
        ({"outputs": ["scaled"]}, "another consumer"),
        ({"group": 3}, "one number an input channel"),
        ({"scale": np.float32(0.5)}, "one number an input channel"),
        ({"scale": SCALE * np.float32([1, 0, 1]).reshape(1, 3, 1, 1)}, "scale of 0"),
        ({"scale": np.full((1, 3, 1, 1), 1e-42, np.float32)}, "too small"),
        ({"constant_weight": False}, "not constants"),
    ],
)
def test_what_must_stay(bench, changes, reason):
    report = bench.apply(FoldPixelScale(), stem_model(bench, **changes))
    assert report.fired == 0
    assert len(report.refused) == 1
    assert reason in report.refused[0][1]
    assert bench.kinds() == bench.kinds(bench.before)
