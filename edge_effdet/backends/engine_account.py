"""What a backend tells of the engine that it built: in which precision each convolution runs.

A compiler returns it beside the engine (``base.Compiled.account``), because some know it only while they build. onnxruntime tells by the model
that it made of the graph (``base.Compiled.optimized``); to read that takes onnx, so ``quant.account`` does it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

BY_WIDTH: tuple[str, ...] = ("int8", "fp16", "bf16", "fp32")
"""Precisions that an account knows, the narrowest first."""


@dataclass(frozen=True, slots=True)
class EngineAccount:
    """The engine, in its backend's own words.

    Attributes:
        source: what told, for people, as in ``OpenVINO's execution graph 2026.4.1``.
        precisions: one of ``BY_WIDTH`` by the name of the convolution's node in the graph. Nodes of other kinds may be among them; a
            convolution that the backend did not name is missing.
    """

    source: str
    precisions: Mapping[str, str]


def widest(precisions: Iterable[str]) -> str:
    """Of several layers that compute one convolution, as for several profiles, what may be claimed of all."""
    return max(precisions, key=BY_WIDTH.index)
