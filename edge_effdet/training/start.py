"""The network that a run starts from: a checkpoint, an ImageNet backbone, COCO weights or random ones; fake quantizers."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from edge_effdet.artifacts import ModelSpec
from edge_effdet.errors import UsageError
from edge_effdet.training.options import ModelOptions

if TYPE_CHECKING:
    import torch

logger = logging.getLogger("edge_effdet.train")


def starting_network(spec: ModelSpec, options: ModelOptions) -> torch.nn.Module:
    """The network of ``spec`` with the weights that the options name; seed torch first.

    Raises:
        UsageError: a checkpoint of another model, fusion or other classes.
        CheckpointError: weights that are missing or do not fit.
    """
    from edge_effdet.models import pretrained
    from edge_effdet.models.checkpoint import load_network, open_checkpoint
    from edge_effdet.models.zoo import create_network, effdet_config, model_spec

    if options.checkpoint is not None:
        start = open_checkpoint(options.checkpoint)
        if (start.spec.name, start.spec.class_names, start.spec.fusion) != (spec.name, spec.class_names, spec.fusion):
            raise UsageError(
                f"{options.checkpoint} is a {start.spec.name} of {start.spec.num_classes} classes with the fusion "
                f"{start.spec.fusion}, and this run trains a {spec.name} of {spec.num_classes} with {spec.fusion}; leave "
                "--model and --fusion out and give data with the same classes."
            )
        return load_network(start)
    source = options.backbone if options.backbone != "auto" else pretrained.backbone_source(spec.name)
    if source == "coco":
        coco = model_spec(spec.name, image_size=spec.image_size, fusion=spec.fusion)
        network: Any = pretrained.load_coco_detector(coco)
        network.reset_head(num_classes=spec.num_classes)
        return network
    network = create_network(spec)
    if source == "imagenet":
        pretrained.load_imagenet_backbone(network, effdet_config(spec.name).backbone_name)
    else:
        logger.warning("%s starts from random weights: no package carries its backbone", spec.name)
    return network


def describe_start(name: str, options: ModelOptions) -> dict[str, Any]:
    """For the provenance: the checkpoint with its own provenance, or the kind of backbone."""
    from edge_effdet.models import pretrained
    from edge_effdet.models.checkpoint import open_checkpoint

    if options.checkpoint is not None:
        start = open_checkpoint(options.checkpoint)
        return {"checkpoint_sha256": start.sha256, "provenance": dict(start.provenance)}
    return {"backbone": options.backbone if options.backbone != "auto" else pretrained.backbone_source(name)}
