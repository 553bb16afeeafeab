from __future__ import annotations

from pathlib import Path

import pytest

from edge_effdet.measure import cpu_has_vnni


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("flags\t\t: fpu sse avx2 avx512f avx512_vnni", True),
        ("flags\t\t: fpu avx_vnni", True),
        ("Features\t: fp asimd asimddp", True),
        ("flags\t\t: fpu sse avx2 avx512f", False),
        ("model name\t: avx512_vnnish", False),
    ],
)
def test_vnni_is_read_from_the_flags(flags: str, expected: bool, tmp_path: Path):
    (tmp_path / "cpuinfo").write_text(flags + "\n")
    assert cpu_has_vnni(tmp_path / "cpuinfo") is expected


def test_an_unknown_processor_has_none(tmp_path: Path):
    assert not cpu_has_vnni(tmp_path / "missing")
