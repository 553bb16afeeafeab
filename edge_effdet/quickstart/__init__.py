"""The shipped model and its scenes: something real to build and look at before a user has a model of their own.

``quickstart.safetensors`` is a ``tf_efficientdet_lite0`` trained by ``python -m edge_effdet.train`` on synthetic scenes;
its metadata holds the command and the AP.
"""

from __future__ import annotations

import logging
from pathlib import Path

from edge_effdet.artifacts import text_sha256
from edge_effdet.errors import CheckpointError

logger = logging.getLogger(__name__)

CHECKPOINT = Path(__file__).with_name("quickstart.safetensors")
SCENES_SEED = 0
SCENES = {"calibration": 128, "test": 300}
"""Scenes that ``make engine`` needs. Training used the splits train and val of the same seed.

A drop is known to 0.3 points of AP on 100 scenes, which is as much as it may be, and to 0.2 on 300.
"""


def quickstart_checkpoint() -> Path:
    """The shipped checkpoint. Raises CheckpointError where an incomplete installation lacks it."""
    if not CHECKPOINT.is_file():
        raise CheckpointError(
            f"The shipped model is missing at {CHECKPOINT}; install edge-effdet again, or give --checkpoint."
        )
    return CHECKPOINT


def quickstart_scenes(folder: Path) -> Path:
    """Calibration and test scenes as a COCO data set below ``folder``, drawn unless they are there already."""
    from edge_effdet.data.synthetic import write_scenes

    root = folder / f"scenes-{text_sha256(repr((SCENES, SCENES_SEED)))[:8]}"
    if not all((root / "annotations" / f"instances_{split}.json").is_file() for split in SCENES):
        logger.info("drawing %d synthetic scenes into %s", sum(SCENES.values()), root)
        write_scenes(root, SCENES, SCENES_SEED)
    return root
