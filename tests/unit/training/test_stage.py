"""What a training notes of itself in its checkpoint."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path

from edge_effdet import train
from edge_effdet.cli import options_from
from edge_effdet.training.options import TrainConfig
from edge_effdet.training.stage import _command


def test_the_command_that_is_noted_trains_the_same():
    config = TrainConfig(
        epochs=3,
        image_size=(64, 96),
        freeze_epochs=-1,
        fold=0,
        learning_rate=3e-4,
        qat=True,
        checkpoint="a b.safetensors",
    )
    words = shlex.split(_command(Path("my data"), Path("runs/x"), config))
    assert words[:3] == ["python", "-m", "edge_effdet.train"]
    parsed = train.make_argument_parser().parse_args(words[3:])
    assert (parsed.data, parsed.output) == (Path("my data"), Path("runs/x"))
    assert options_from(TrainConfig, parsed) == replace(config, checkpoint=Path("a b.safetensors"))
    assert shlex.split(_command(Path("d"), Path("o"), TrainConfig())) == [*words[:3], "--data", "d", "--output", "o"]
