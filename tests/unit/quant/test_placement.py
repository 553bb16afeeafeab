"""Which convolutions become INT8."""

from __future__ import annotations

import pytest

from edge_effdet.errors import UsageError
from edge_effdet.quant.placement import choose_convolutions, is_final

NAMES = [
    "backbone.conv_stem",
    "backbone.blocks.0.0.conv_dw",
    "backbone.blocks.2.1.conv_pw",
    "backbone.blocks.3.0.conv_pw",
    "backbone.blocks.10.0.conv_pw",
    "fpn.cell.0.conv",
    "class_net.conv_rep.0.conv_pw@0",
    "class_net.predict.conv_dw@0",
    "class_net.predict.conv_pw@4",
    "box_net.predict.conv_pw@0",
]


@pytest.mark.parametrize(
    ("name", "final"),
    [
        ("class_net.predict.conv_pw@0", True),
        ("box_net.predict.conv_dw", True),
        ("class_net.conv_rep.0.conv_pw", False),
        ("my.class_net.predict.conv_pw", False),
        ("class_net.predictor.conv", False),
        ("", False),
    ],
)
def test_the_final_convolutions(name, final):
    assert is_final(name) == final


def test_the_final_ones_stay_high_without_being_asked():
    quantized, high = choose_convolutions(NAMES, [])
    assert high == NAMES[7:]
    assert quantized == NAMES[:7]


def test_patterns_stay_high():
    quantized, high = choose_convolutions(NAMES, ["backbone.conv_stem*", "backbone.blocks.0.*", "backbone.blocks.2.*"])
    assert high == [*NAMES[:3], *NAMES[7:]]
    assert quantized == NAMES[3:7]


def test_each_name_stands_on_one_side_in_its_order():
    quantized, high = choose_convolutions(iter(NAMES), ["*conv_pw*"])
    assert sorted([*quantized, *high]) == sorted(NAMES)
    assert quantized == [name for name in NAMES if name in quantized]


def test_a_pattern_that_matches_nothing_is_refused_with_what_names_look_like():
    with pytest.raises(UsageError, match=r"`keep_high` 'backbone\.stem' matches no convolution.*backbone\.conv_stem"):
        choose_convolutions(NAMES, ["backbone.stem"])


def test_nothing_left_is_refused():
    for patterns in (["*"], ["backbone.*", "fpn.*", "class_net.conv_rep.*"]):
        with pytest.raises(UsageError, match="nothing is left for INT8; make an FP16 graph"):
            choose_convolutions(NAMES, patterns)


@pytest.mark.parametrize("patterns", [[], ["backbone.*"]])
def test_a_graph_without_convolutions_is_refused(patterns):
    with pytest.raises(UsageError):
        choose_convolutions([], patterns)
