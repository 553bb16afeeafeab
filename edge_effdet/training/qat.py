"""Quantization-aware fine-tuning: a trained network goes on training with ModelOpt's fake quantizers in it.

The weights of every convolution but the final ones are rounded to INT8 by output channel, their inputs by tensor, in the
forward pass; gradients pass straight through (Jacob et al., arXiv 1712.05877, section 3). A batch norm that export folds
multiplies whole output channels, so it commutes with rounding by channel: what was trained is what is deployed.

The checkpoint that is kept is a plain one, which every stage takes; its provenance holds the input ranges under ``qat``.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from timm.layers.conv2d_same import Conv2dSame
from torch import nn

from edge_effdet.artifacts import ModelSpec
from edge_effdet.data.base import Sample, readable_images
from edge_effdet.errors import DataError, MissingDependency
from edge_effdet.models.detector import DetectionModule
from edge_effdet.runtime.preprocess import images_to_batch, letterbox

logger = logging.getLogger("edge_effdet.train")

CALIBRATION_IMAGES = 32
"""Few are enough, since the ranges only have to start near the right place: training moves the weights to them."""

_QUANTIZER = "_quantizer"
_SAME = "timm.Conv2dSame"
_CONFIG = {
    "quant_cfg": [
        {"quantizer_name": "*", "enable": False},
        # Convolutions only: ModelOpt would round the inputs of batch norms and pools too, which no engine does.
        *(
            {"quantizer_name": f"*{kind}_quantizer", "parent_class": parent, "cfg": {"num_bits": 8, "axis": axis}}
            for kind, axis in (("weight", 0), ("input", None))
            for parent in ("nn.Conv2d", _SAME)
        ),
        # The final convolutions stay in floating point, as in the graphs of ``quantize``.
        {"quantizer_name": "*predict*", "enable": False},
    ],
    "algorithm": "max",
}


def insert_fake_quantizers(network: nn.Module, spec: ModelSpec, samples: Sequence[Sample], seed: int) -> nn.Module:
    """Put INT8 fake quantizers around the convolutions of a network, in place, with ranges measured on training images.

    Args:
        network: effdet's, trained.
        spec: the network's.
        samples: the training split; ``CALIBRATION_IMAGES`` of them are looked at.
        seed: seeds the random choice of these images.

    Raises:
        MissingDependency: ModelOpt is not installed.
        DataError: none of the images can be decoded.
    """
    import numpy as np

    try:
        # While it is imported, ModelOpt prints which packages it could use besides.
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            import modelopt.torch.quantization as mtq
            from modelopt.torch.quantization.nn import QuantLinearConvBase, QuantModuleRegistry
    except ModuleNotFoundError as error:
        raise MissingDependency("nvidia-modelopt", "export", "to train with fake quantizers") from error
    if Conv2dSame not in QuantModuleRegistry:
        # ModelOpt does not know timm's convolution with TensorFlow's padding, which all convolutions with a stride of 2 are.
        QuantModuleRegistry.register({Conv2dSame: _SAME})(QuantLinearConvBase)
    order = np.random.default_rng(seed).permutation(len(samples))[:CALIBRATION_IMAGES]
    canvases = [
        letterbox(image, spec.image_size, spec.preprocess)[0]
        for _, image in readable_images(samples[index] for index in order)
    ]
    if not canvases:
        raise DataError("None of the images to calibrate on can be decoded; check the files.")

    def look(module: nn.Module) -> None:
        detector = DetectionModule(module, spec).eval()
        with torch.no_grad():
            for canvas in canvases:
                module(detector.normalise(torch.from_numpy(images_to_batch([canvas]))))

    network.eval()
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        quantized: nn.Module = mtq.quantize(network, _CONFIG, look)
    ranges = quantizer_ranges(quantized)
    logger.info("INT8 fake quantizers before %d convolutions, ranges from %d images", len(ranges), len(canvases))
    return quantized


def without_quantizers(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors of a network's state that belong to the plain network and not to its quantizers."""
    return {name: tensor for name, tensor in state.items() if _QUANTIZER not in name}


def quantizer_ranges(network: nn.Module) -> dict[str, float]:
    """The largest absolute input of each quantized convolution, by its name in the network."""
    quantizers: list[tuple[str, Any]] = [
        (name.removesuffix(".input_quantizer"), module)
        for name, module in network.named_modules()
        if name.endswith(".input_quantizer")
    ]
    return {name: float(module.amax) for name, module in quantizers if module.is_enabled and module.amax is not None}
