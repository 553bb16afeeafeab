"""The network that a run starts from: a checkpoint, an ImageNet backbone, COCO weights or random ones."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_effdet.artifacts import ModelSpec, file_sha256
from edge_effdet.errors import CheckpointError, UsageError
from edge_effdet.options import as_path
from edge_effdet.training.options import ModelOptions

if TYPE_CHECKING:
    import torch

logger = logging.getLogger("edge_effdet.train")


def starting_network(spec: ModelSpec, options: ModelOptions) -> torch.nn.Module:
    """Build the network of ``spec`` with the weights that the options name. Random weights come from torch's seed, which the caller sets.

    Raises:
        UsageError: the checkpoint has another model, another fusion or other classes.
        CheckpointError: weights are missing or do not fit.
    """
    from edge_effdet.models import pretrained
    from edge_effdet.models.checkpoint import describes_itself, load_network, open_checkpoint
    from edge_effdet.models.zoo import create_network, effdet_config, model_spec

    checkpoint = as_path(options.checkpoint)
    if checkpoint is not None and not describes_itself(checkpoint):
        return _network_of_foreign(checkpoint, spec)
    if checkpoint is not None:
        start = open_checkpoint(checkpoint)
        if (start.spec.name, start.spec.class_names, start.spec.fusion) != (spec.name, spec.class_names, spec.fusion):
            raise UsageError(
                f"{checkpoint} is a {start.spec.name} of {start.spec.num_classes} classes with the fusion "
                f"{start.spec.fusion}, and this run trains a {spec.name} of {spec.num_classes} with {spec.fusion}; leave "
                "`model` and `fusion` out and give data with the same classes."
            )
        # The network is built for this run's input size, because effdet lays out pyramid and anchors for one size.
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


def _network_of_foreign(path: Path, spec: ModelSpec) -> torch.nn.Module:
    """The network of another program's file, which was trained on the classes of the data or on COCO's."""
    from edge_effdet.models.checkpoint import load_foreign
    from edge_effdet.models.zoo import model_spec

    try:
        return load_foreign(path, spec)
    except CheckpointError as error:
        coco = model_spec(spec.name, image_size=spec.image_size, fusion=spec.fusion)
        try:
            return _with_own_head(load_foreign(path, coco), spec)
        except CheckpointError:
            # The first error says what does not fit the classes of the data, which the user knows.
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
    """What the provenance says of the starting weights: the checkpoint's hash and its own provenance, or the kind of backbone."""
    from edge_effdet.models import pretrained
    from edge_effdet.models.checkpoint import describes_itself, open_checkpoint

    checkpoint = as_path(options.checkpoint)
    if checkpoint is not None and not describes_itself(checkpoint):
        return {"checkpoint_sha256": file_sha256(checkpoint)}
    if checkpoint is not None:
        start = open_checkpoint(checkpoint)
        return {"checkpoint_sha256": start.sha256, "provenance": dict(start.provenance)}
    return {"backbone": options.backbone if options.backbone != "auto" else pretrained.backbone_source(name)}
