"""The model that comes with the package and its scenes, to build an engine before training a model of one's own.

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
"""Number of scenes in each split that ``make engine`` draws. Training used the splits train and val of the same seed.

A drop in AP is known to within 0.3 points on 100 scenes, and to within 0.2 on 300.
"""


def quickstart_checkpoint() -> Path:
    """The shipped checkpoint. Raises CheckpointError if the installation lacks it."""
    if not CHECKPOINT.is_file():
        raise CheckpointError(
            f"The shipped model is missing at {CHECKPOINT}; install edge-effdet again, or give `checkpoint`."
        )
    return CHECKPOINT


def quickstart_scenes(folder: Path) -> Path:
    """The calibration and test scenes as a COCO data set below ``folder``; they are drawn unless they are there."""
    from edge_effdet.data.synthetic import write_scenes

    root = folder / f"scenes-{text_sha256(repr((SCENES, SCENES_SEED)))[:8]}"
    if not all((root / "annotations" / f"instances_{split}.json").is_file() for split in SCENES):
        logger.info("drawing %d synthetic scenes into %s", sum(SCENES.values()), root)
        write_scenes(root, SCENES, SCENES_SEED)
    return root
