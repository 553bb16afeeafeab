"""The file to resume from comes back as it was, and a damaged one is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from edge_effdet.errors import CheckpointError
from edge_effdet.training.resume import FILE_NAME, RunProgress, load_progress, save_progress

TENSORS = {
    "network.a": torch.arange(6.0).reshape(2, 3),
    # As a network in channels last has them: not contiguous.
    "ema.b": torch.randn(2, 3, 4, 4).contiguous(memory_format=torch.channels_last),
    "optimizer.0.step": torch.tensor(7.0),
    "network.bn.num_batches_tracked": torch.tensor(3),
}
PROGRESS = RunProgress(2, 5, (0.1, 1 / 3, 2.0), ({"epoch": 1, "loss": 0.1 + 0.2},), 0.5, None, 1, 12.5)


def save(folder: Path) -> Path:
    save_progress(folder, PROGRESS, {"spec": {"name": "x"}}, TENSORS, {"updates": 9})
    return folder / FILE_NAME


def test_comes_back_to_the_last_bit(tmp_path: Path):
    save(tmp_path)
    loaded = load_progress(tmp_path)
    assert loaded is not None
    progress, identity, tensors, numbers = loaded
    assert progress == PROGRESS and identity == {"spec": {"name": "x"}} and numbers == {"updates": 9}
    assert tensors.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert torch.equal(tensors[name], tensor) and tensors[name].dtype == tensor.dtype


def test_no_file_is_no_progress(tmp_path: Path):
    assert load_progress(tmp_path) is None


@pytest.mark.parametrize("damage", ["flip", "truncate", "empty", "foreign"])
def test_refuses_a_damaged_file(tmp_path: Path, damage: str):
    path = save(tmp_path)
    content = bytearray(path.read_bytes())
    if damage == "flip":
        content[-5] ^= 1
    path.write_bytes({"truncate": content[:-8], "empty": b"", "foreign": b"PK\3\4 something else"}.get(damage, content))
    with pytest.raises(CheckpointError, match="`checkpoint`"):
        load_progress(tmp_path)


def test_a_state_that_nothing_can_go_on_from_does_not_replace_a_good_one(tmp_path: Path):
    path = save(tmp_path)
    before = path.read_bytes()
    with pytest.raises(CheckpointError, match=r"not finite in epoch 3.*`learning_rate`"):
        save_progress(tmp_path, PROGRESS, {}, {"network.a": torch.tensor([1.0, float("nan")])}, {})
    assert path.read_bytes() == before
