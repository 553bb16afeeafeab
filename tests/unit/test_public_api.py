from __future__ import annotations

import subprocess
import sys

import pytest

import edge_effdet


@pytest.mark.parametrize("name", edge_effdet.__all__)
def test_every_public_name_is_there(name: str):
    assert getattr(edge_effdet, name).__doc__


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'toaster'"):
        _ = edge_effdet.toaster


def test_importing_the_package_loads_nothing_heavy():
    code = "import sys, edge_effdet; print([name for name in ('torch', 'onnx', 'numpy', 'PIL') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
