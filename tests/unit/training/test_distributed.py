"""Batch norm over processes gives what torch's own gives for the whole batch."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import distributed, nn

from edge_effdet.training.distributed import _SyncedForward


@pytest.fixture
def one_process(tmp_path: Path) -> Iterator[None]:
    distributed.init_process_group(
        "gloo", store=distributed.FileStore(str(tmp_path / "store"), 1), rank=0, world_size=1
    )
    yield
    distributed.destroy_process_group()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_statistics_are_those_of_torch_in_every_precision(dtype: torch.dtype, one_process: None):
    torch.manual_seed(0)
    own, synced = nn.BatchNorm2d(8), nn.BatchNorm2d(8)
    synced.forward = _SyncedForward(synced)
    # Far from 0, where a mean that is rounded to 8 bits would show.
    x = (torch.randn(4, 8, 6, 6) + 50).to(dtype)
    expected, given = own(x), synced(x)
    assert given.dtype == dtype
    torch.testing.assert_close(given, expected, rtol=1e-2 if dtype == torch.bfloat16 else 1e-4, atol=1e-2)
    torch.testing.assert_close(synced.running_mean, own.running_mean)
    torch.testing.assert_close(synced.running_var, own.running_var, rtol=1e-4, atol=1e-5)
    assert synced.num_batches_tracked == 1
