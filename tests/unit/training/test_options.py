"""Options that make no sense are refused, each with the flag's name and a value that would do."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from edge_effdet.errors import UsageError
from edge_effdet.models.zoo import model_spec
from edge_effdet.training.options import (
    AffineOptions,
    AugmentOptions,
    ModelOptions,
    OptimizerOptions,
    RunOptions,
    ScheduleOptions,
    TrainOptions,
    check_options,
    differing_options,
)

SPEC = model_spec("tf_efficientdet_lite0", ("disc",), image_size=(320, 320))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (TrainOptions(schedule=ScheduleOptions(epochs=0)), "--epochs 0"),
        (TrainOptions(schedule=ScheduleOptions(batch_size=0)), "--batch-size 0"),
        (TrainOptions(schedule=ScheduleOptions(accumulate=0)), "--accumulate 0"),
        (TrainOptions(schedule=ScheduleOptions(patience=-1)), "--patience -1"),
        (TrainOptions(schedule=ScheduleOptions(learning_rate=0)), "--learning-rate 0"),
        (TrainOptions(schedule=ScheduleOptions(learning_rate=float("nan"))), "--learning-rate nan"),
        (TrainOptions(schedule=ScheduleOptions(warmup_epochs=float("nan"))), "--warmup-epochs nan"),
        (TrainOptions(schedule=ScheduleOptions(warmup_epochs=float("inf"))), "--warmup-epochs inf"),
        (TrainOptions(optimizer=OptimizerOptions(clip_norm=-1)), "--clip-norm -1"),
        (TrainOptions(optimizer=OptimizerOptions(ema_decay=1)), "--ema-decay 1"),
        (TrainOptions(optimizer=OptimizerOptions(layer_decay=0)), "--layer-decay 0"),
        (TrainOptions(optimizer=OptimizerOptions(freeze_epochs=-2)), "--freeze-epochs -2"),
        (TrainOptions(augment=AugmentOptions(mosaic=1.5)), "--mosaic 1.5"),
        (TrainOptions(augment=AugmentOptions(scale_min=2, scale_max=1)), "--scale-min 2"),
        (TrainOptions(augment=AugmentOptions(scale_max=float("inf"))), "--scale-max inf"),
        (TrainOptions(affine=AffineOptions(rotate=200)), "--rotate 200"),
        (TrainOptions(affine=AffineOptions(zoom=1)), "--zoom 1"),
        (TrainOptions(run=RunOptions(validate_every=0)), "--validate-every 0"),
        (TrainOptions(model=ModelOptions(qat=True)), "--checkpoint"),
        (TrainOptions(workers=-1), "--workers -1"),
    ],
)
def test_refuses(options: TrainOptions, said: str):
    with pytest.raises(UsageError) as caught:
        check_options(options, SPEC, images=100)
    assert said in str(caught.value) and len(str(caught.value)) < 200


def test_takes_the_defaults_and_a_checkpoint_to_quantize():
    check_options(TrainOptions(), SPEC, images=100)
    check_options(TrainOptions(model=ModelOptions(qat=True, checkpoint=Path("best.safetensors"))), SPEC, images=100)


def test_a_batch_must_divide_among_the_processes():
    options = TrainOptions(schedule=ScheduleOptions(batch_size=9))
    check_options(options, SPEC, images=100, processes=3)
    with pytest.raises(UsageError, match="multiple of 2"):
        check_options(options, SPEC, images=100, processes=2)
    with pytest.raises(UsageError, match="over 2 images"):
        check_options(options, SPEC, images=2, processes=3)


def test_single_images_at_a_small_size_leave_batch_norm_nothing():
    small = replace(SPEC, image_size=(128, 128))
    with pytest.raises(UsageError, match="batch norm"):
        check_options(TrainOptions(schedule=ScheduleOptions(batch_size=1)), small, images=10)
    with pytest.raises(UsageError, match="batch norm"):
        check_options(TrainOptions(), small, images=1)


def test_names_the_options_that_differ():
    old = TrainOptions().record()
    new = TrainOptions(schedule=ScheduleOptions(epochs=7), augment=AugmentOptions(flip="both")).record()
    assert differing_options(old, old) == []
    assert sorted(differing_options(old, new)) == ["--epochs 50 -> 7", "--flip horizontal -> both"]
