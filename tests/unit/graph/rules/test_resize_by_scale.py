"""A Resize by size becomes a Resize by factors, with a dynamic batch too, and stays where factors would change its result."""

from __future__ import annotations

import numpy as np
import pytest

from edge_effdet.graph.rules.resize_by_scale import ResizeByScale

NEAREST = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}


def resize_model(bench, before=(4, 6), after=(8, 12), batch=1, **attributes):
    """``out = Resize(x)`` by size; where the batch has a name, the graph computes the size from that of its input."""
    arrays = {"sides": np.array([3, *after])}
    nodes = []
    if isinstance(batch, int):
        arrays = {"size": np.array([batch, 3, *after])}
    else:
        nodes += [("Shape", ["x"], ["n"], {"start": 0, "end": 1}), ("Concat", ["n", "sides"], ["size"], {"axis": 0})]
    nodes.append(("Resize", ["x", "", "", "size"], ["out"], {**NEAREST, **attributes}))
    return bench.make_model(nodes, arrays, {"x": [batch, 3, *before]}, {"out": [batch, 3, *after]})


@pytest.mark.parametrize("batch", [1, 2, "batch"])
@pytest.mark.parametrize(("before", "after"), [((4, 6), (8, 12)), ((3, 5), (9, 5)), ((4, 4), (4, 4))])
def test_whole_factors_need_no_size(bench, before, after, batch):
    report = bench.apply(ResizeByScale(), resize_model(bench, before, after, batch), batch=3)
    assert (report.fired, report.refused) == (1, ())
    assert bench.kinds() == {"Resize": 1}
    (scales,) = bench.initializers().values()
    np.testing.assert_array_equal(scales, [1, 1, after[0] / before[0], after[1] / before[1]])


def test_resizing_by_factors_is_left_as_it_is(bench):
    scales = {"scales": np.array([1, 1, 2, 2], np.float32)}
    nodes = [("Resize", ["x", "", "scales"], ["out"], NEAREST)]
    model = bench.make_model(nodes, scales, {"x": [1, 3, 4, 4]}, {"out": [1, 3, 8, 8]})
    report = bench.apply(ResizeByScale(), model)
    assert (report.fired, report.refused) == (0, ())


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        # A size of 288 px has levels of 9 and 5, and no whole factor makes 9 of 5.
        ({"before": (5, 5), "after": (9, 9)}, "5x5 to 9x9 is not a whole factor"),
        ({"mode": "linear"}, "interpolates"),
        ({"coordinate_transformation_mode": "half_pixel"}, "asymmetric"),
        ({"nearest_mode": "ceil"}, "asymmetric"),
    ],
)
def test_what_must_stay(bench, changes, reason):
    report = bench.apply(ResizeByScale(), resize_model(bench, **changes))
    assert report.fired == 0
    assert [reason in why for _, why in report.refused] == [True]
    assert bench.kinds() == bench.kinds(bench.before)
