"""Options that make no sense are refused, each with the name of its field and a value that would do."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from edge_effdet.errors import UsageError
from edge_effdet.models.zoo import model_spec
from edge_effdet.training.options import TrainConfig, check_batch, differing_options

SPEC = model_spec("tf_efficientdet_lite0", ("disc",), image_size=(320, 320))


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"epochs": 0}, "`epochs` 0"),
        ({"batch_size": 0}, "`batch_size` 0"),
        ({"accumulate": 0}, "`accumulate` 0"),
        ({"patience": -1}, "`patience` -1"),
        ({"learning_rate": 0}, "`learning_rate` 0"),
        ({"learning_rate": float("nan")}, "`learning_rate` nan"),
        ({"warmup_epochs": float("nan")}, "`warmup_epochs` nan"),
        ({"warmup_epochs": float("inf")}, "`warmup_epochs` inf"),
        ({"clip_norm": -1}, "`clip_norm` -1"),
        ({"ema_decay": 1}, "`ema_decay` 1"),
        ({"layer_decay": 0}, "`layer_decay` 0"),
        ({"freeze_epochs": -2}, "`freeze_epochs` -2"),
        ({"mosaic": 1.5}, "`mosaic` 1.5"),
        ({"scale_min": 2, "scale_max": 1}, "`scale_min` 2"),
        ({"scale_max": float("inf")}, "`scale_max` inf"),
        ({"rotate": 200}, "`rotate` 200"),
        ({"zoom": 1}, "`zoom` 1"),
        ({"validate_every": 0}, "`validate_every` 0"),
        ({"qat": True}, "`checkpoint`"),
        ({"workers": -1}, "`workers` -1"),
        ({"seed": 2**63}, "`seed` 9223372036854775808"),
        ({"flip": "vertical"}, "no `flip` 'vertical'; the choices are none, horizontal, both"),
        ({"fusion": "mean"}, "no `fusion` 'mean'"),
    ],
)
def test_refuses(wrong: dict[str, Any], said: str):
    with pytest.raises(UsageError) as caught:
        TrainConfig(**wrong)
    assert said in str(caught.value) and len(str(caught.value)) < 200


def test_takes_the_defaults_and_a_checkpoint_to_quantize():
    check_batch(TrainConfig(), SPEC, images=100)
    check_batch(TrainConfig(qat=True, checkpoint="best.safetensors"), SPEC, images=100)


def test_a_batch_must_divide_among_the_processes():
    options = TrainConfig(batch_size=9)
    check_batch(options, SPEC, images=100, processes=3)
    with pytest.raises(UsageError, match="multiple of 2"):
        check_batch(options, SPEC, images=100, processes=2)
    with pytest.raises(UsageError, match="over 2 images"):
        check_batch(options, SPEC, images=2, processes=3)


def test_single_images_at_a_small_size_leave_batch_norm_nothing():
    small = replace(SPEC, image_size=(128, 128))
    with pytest.raises(UsageError, match="batch norm"):
        check_batch(TrainConfig(batch_size=1), small, images=10)
    with pytest.raises(UsageError, match="batch norm"):
        check_batch(TrainConfig(), small, images=1)


def test_names_the_options_that_differ():
    old = TrainConfig().record()
    new = TrainConfig(epochs=7, flip="both").record()
    assert differing_options(old, old) == []
    assert sorted(differing_options(old, new)) == ["`epochs` 50 -> 7", "`flip` horizontal -> both"]
