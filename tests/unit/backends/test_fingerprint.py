"""What tells two machines apart for an engine, and what does not."""

from __future__ import annotations

from dataclasses import replace

import pytest

from edge_effdet.artifacts.record import Fingerprint
from edge_effdet.backends import fingerprint
from edge_effdet.backends.base import Available
from edge_effdet.backends.fingerprint import describe_machine, machine_fingerprint

HASWELL = Fingerprint("openvino", "2026.4.1-22982-e213a147257-releases/2026/4", "x86", ("avx", "avx2", "fma"))


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({}, "x86 avx2 without VNNI, openvino 2026.4.1"),
        ({"instructions": ("avx2", "avx512_vnni", "avx512f")}, "x86 avx512f with VNNI, openvino 2026.4.1"),
        ({"instructions": ()}, "x86 without VNNI, openvino 2026.4.1"),
        ({"processor": "arm", "instructions": ("asimd",)}, "Arm, openvino 2026.4.1"),
        (
            {"backend": "tensorrt", "version": "10.3.0", "processor": "Orin (SM 87)", "instructions": ()},
            "Orin (SM 87), tensorrt 10.3.0",
        ),
    ],
)
def test_a_person_reads_what_matters(changes, text):
    assert describe_machine(replace(HASWELL, **changes)) == text


def test_this_machine(monkeypatch):
    here = machine_fingerprint("onnxruntime")
    assert here.backend == "onnxruntime" and here.instructions == tuple(sorted(here.instructions))
    monkeypatch.setattr(fingerprint, "cpu_flags", lambda: frozenset({"avx2", "aes", "ht"}))
    assert machine_fingerprint("onnxruntime").instructions == ("avx2",)


def test_a_gpu_is_known_by_its_name(monkeypatch):
    monkeypatch.setattr(fingerprint, "require", lambda name: Available("10.3.0", "Orin (SM 87)"))
    assert machine_fingerprint("tensorrt") == Fingerprint("tensorrt", "10.3.0", "Orin (SM 87)", ())
