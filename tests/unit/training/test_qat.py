"""Fake quantizers stand before every convolution but the final ones, and come off again."""

from __future__ import annotations

from pathlib import Path

import torch

from edge_effdet.data.registry import read_dataset
from edge_effdet.models.checkpoint import load_weights
from edge_effdet.models.zoo import create_network, model_spec
from edge_effdet.training.qat import insert_fake_quantizers, quantizer_ranges, without_quantizers


def test_rounds_where_it_should_and_comes_off(tiny_voc: Path):
    dataset = read_dataset(tiny_voc)
    spec = model_spec("tf_efficientdet_lite0", dataset.class_names, image_size=(64, 64))
    torch.manual_seed(0)
    network = create_network(spec).eval()
    convolutions = [name for name, module in network.named_modules() if isinstance(module, torch.nn.Conv2d)]
    images = torch.randn(1, 3, 64, 64)
    plain = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    with torch.no_grad():
        before = [level.clone() for levels in network(images) for level in levels]
        quantized = insert_fake_quantizers(network, spec, dataset.splits["train"], seed=0)
        after = [level for levels in quantized(images) for level in levels]
    ranges = quantizer_ranges(quantized)
    assert set(ranges) == {name for name in convolutions if "predict" not in name}
    assert all(0 < value < 1e4 for value in ranges.values())
    assert any(not torch.equal(one, two) for one, two in zip(before, after, strict=True))
    # Training goes on through them.
    sum(level.sum() for levels in quantized.train()(images.repeat(2, 1, 1, 1)) for level in levels).backward()
    assert all(parameter.grad is not None for parameter in quantized.parameters())

    kept = without_quantizers(quantized.state_dict())
    assert kept.keys() == plain.keys()
    load_weights(spec, kept, "the quantized network")
