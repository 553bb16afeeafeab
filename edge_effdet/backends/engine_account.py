"""What a backend tells of the engine that it built: in which precision each convolution runs.

A backend that tells offers ``compile_with_account``, which compiles as ``compile`` does and returns the account beside the bytes. Some
know it only while they build, so it is not asked of the engine afterwards. onnxruntime tells by a model that it writes
(``write_optimized``), and what reads that imports onnx. ``quant.account`` asks all of them, and counts.
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
