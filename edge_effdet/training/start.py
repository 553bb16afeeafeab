"""The network that a run starts from: a checkpoint, an ImageNet backbone, COCO weights or random ones; fake quantizers."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_effdet.artifacts import ModelSpec, file_sha256
from edge_effdet.errors import CheckpointError, UsageError
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
    from edge_effdet.models.checkpoint import is_effdet_file, load_network, open_checkpoint
    from edge_effdet.models.zoo import create_network, effdet_config, model_spec

    if options.checkpoint is not None and is_effdet_file(options.checkpoint):
        return _network_of_pth(options.checkpoint, spec)
    if options.checkpoint is not None:
        start = open_checkpoint(options.checkpoint)
        if (start.spec.name, start.spec.class_names, start.spec.fusion) != (spec.name, spec.class_names, spec.fusion):
            raise UsageError(
                f"{options.checkpoint} is a {start.spec.name} of {start.spec.num_classes} classes with the fusion "
                f"{start.spec.fusion}, and this run trains a {spec.name} of {spec.num_classes} with {spec.fusion}; leave "
                "--model and --fusion out and give data with the same classes."
            )
        # For this run's size: effdet lays out pyramid and anchors for the size that a network was built for.
        return load_network(replace(start, spec=spec))
    source = options.backbone if options.backbone != "auto" else pretrained.backbone_source(spec.name)
    if source == "coco":
        coco = model_spec(spec.name, image_size=spec.image_size, fusion=spec.fusion)
        return _with_own_head(pretrained.load_coco_detector(coco), spec)
    network = create_network(spec)
    if source == "imagenet":
        pretrained.load_imagenet_backbone(network, effdet_config(spec.name).backbone_name)
    else:
        reason = "as asked for" if options.backbone == "random" else "no package carries its backbone"
        logger.warning("%s starts from random weights: %s", spec.name, reason)
    return network


def _network_of_pth(path: Path, spec: ModelSpec) -> torch.nn.Module:
    """effdet's file, which has either the classes of the data or COCO's."""
    from edge_effdet.models.checkpoint import load_effdet_pth
    from edge_effdet.models.zoo import model_spec

    try:
        return load_effdet_pth(path, spec)
    except CheckpointError as error:
        coco = model_spec(spec.name, image_size=spec.image_size, fusion=spec.fusion)
        try:
            return _with_own_head(load_effdet_pth(path, coco), spec)
        except CheckpointError:
            # What is wrong with it as a file of this data's classes says more.
            raise error from None


def _with_own_head(source: torch.nn.Module, spec: ModelSpec) -> torch.nn.Module:
    """The network of ``spec`` with the weights of a COCO detector, but for the final class layer and what does not fit."""
    from edge_effdet.models.zoo import create_network

    network = create_network(spec)
    own = network.state_dict()
    kept = {
        name: tensor
        for name, tensor in source.state_dict().items()
        if not name.startswith("class_net.predict.") and own[name].shape == tensor.shape
    }
    network.load_state_dict({**own, **kept})
    return network


def describe_start(name: str, options: ModelOptions) -> dict[str, Any]:
    """For the provenance: the checkpoint with its own provenance, or the kind of backbone."""
    from edge_effdet.models import pretrained
    from edge_effdet.models.checkpoint import is_effdet_file, open_checkpoint

    if options.checkpoint is not None and is_effdet_file(options.checkpoint):
        return {"checkpoint_sha256": file_sha256(options.checkpoint)}
    if options.checkpoint is not None:
        start = open_checkpoint(options.checkpoint)
        return {"checkpoint_sha256": start.sha256, "provenance": dict(start.provenance)}
    return {"backbone": options.backbone if options.backbone != "auto" else pretrained.backbone_source(name)}
