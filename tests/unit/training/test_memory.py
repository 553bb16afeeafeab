"""Batches that do not fit: recognised from the real allocator's words, foreseen, and answered with one that fits."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from edge_effdet.errors import UsageError
from edge_effdet.models.zoo import create_network, model_spec
from edge_effdet.training import memory
from edge_effdet.training.options import TrainConfig
from edge_effdet.training.trainer import Trainer, make_accelerator

SPEC = model_spec("tf_efficientdet_lite0", ("disc",), image_size=(64, 64))


@pytest.fixture(scope="module")
def trainer() -> Trainer:
    options = TrainConfig()
    return Trainer(create_network(SPEC), SPEC, options, 10, make_accelerator(options))


def test_knows_the_allocators_error():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert memory.is_out_of_memory(caught.value)
    assert memory.is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert not memory.is_out_of_memory(RuntimeError("sizes do not match"))


def test_a_batch_larger_than_the_machine_is_refused_and_a_smaller_one_named(trainer: Trainer):
    before = {name: tensor.clone() for name, tensor in trainer.ema.module.state_dict().items()}
    with pytest.raises(
        UsageError, match=r"does not fit into memory .*give `batch_size` (\d+) and `accumulate`"
    ) as caught:
        memory.require_memory(trainer, 10_000_000, SPEC.image_size)
    fits = int(str(caught.value).split("`batch_size` ")[1].split()[0])
    memory.require_memory(trainer, max(1, fits // 2), SPEC.image_size)
    after = trainer.ema.module.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not trainer.ema.module.training


def test_halves_until_it_fits():
    tried = []

    def attempt(images: int) -> None:
        tried.append(images)
        if images > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")

    error = memory.explain_out_of_memory(attempt, 20, (512, 512), torch.OutOfMemoryError())
    assert tried == [10, 5, 2]
    assert "2 does: give `batch_size` 2 and `accumulate` 10" in str(error)


def test_says_so_when_nothing_fits():
    def attempt(images: int) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    error = memory.explain_out_of_memory(attempt, 4, (1024, 1024), torch.OutOfMemoryError())
    assert "smaller `image_size` or model" in str(error)


def test_a_batch_can_be_tried_without_moving_the_weights(trainer: Trainer):
    trainer.start_epoch(0)
    before = [parameter.clone() for parameter in trainer.network.parameters()]
    trainer.try_batch(2)
    assert all(torch.equal(one, two) for one, two in zip(before, trainer.network.parameters(), strict=True))


def test_several_processes_share_the_batch_and_none_tries_alone():
    def attempt(images: int) -> None:
        raise AssertionError("the others would be waited for")

    error = memory.explain_out_of_memory(attempt, 8, (512, 512), torch.OutOfMemoryError(), processes=4)
    # The option counts the images of all processes.
    assert "8 in each of 4 processes" in str(error) and "4 may: give `batch_size` 16 and `accumulate` 2" in str(error)


def test_the_batch_that_failed_is_freed_before_smaller_ones_are_tried():
    import weakref
    from types import SimpleNamespace
    from typing import Any, cast

    from edge_effdet.training.loop import Run

    class StandsInForAGpu:
        accelerator = SimpleNamespace(num_processes=1)
        held: Any = None

        def step(self, *_: Any) -> None:
            activations = torch.zeros(8)
            self.held = weakref.ref(activations)
            raise torch.OutOfMemoryError("CUDA out of memory")

        def try_batch(self, images: int) -> None:
            if self.held() is not None:
                raise torch.OutOfMemoryError("CUDA out of memory")

    run = cast(Any, SimpleNamespace(trainer=StandsInForAGpu(), spec=SPEC))
    with pytest.raises(UsageError, match="4 does: give `batch_size` 4"):
        Run._step(run, cast(Any, SimpleNamespace(indices=range(8))), 0, 0)


def test_files_in_the_cache_of_a_control_group_are_free(tmp_path: Path):
    for name, text in {
        "memory.max": "8000\n",
        "memory.current": "7900\n",
        "memory.stat": "anon 1900\nfile 6000\ninactive_file 4000\nactive_file 2000\n",
    }.items():
        (tmp_path / name).write_text(text)
    assert memory._free_in_group(tmp_path) == 6100
    (tmp_path / "memory.max").write_text("max\n")
    with pytest.raises(ValueError, match="max"):
        memory._free_in_group(tmp_path)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such folder")
def test_shared_memory_that_is_too_small_or_not_there_is_told_before_the_run(tmp_path):
    memory.require_shared_memory(0, 16, (512, 512), tmp_path / "absent")
    memory.require_shared_memory(2, 1, (64, 64), tmp_path)
    for images, folder, said in (
        (16, tmp_path / "absent", "No such file or directory"),
        (10**9, tmp_path, r"they take up to 3932160001\.0 MB of it"),
    ):
        with pytest.raises(UsageError, match=rf"{said}.*; give `workers` 0, or"):
            memory.require_shared_memory(2, images, (512, 512), folder)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not tell what is open")
def test_a_limit_of_open_files_that_is_too_small_is_told_before_the_run():
    memory.require_open_files(2)
    memory.require_open_files(0)
    with pytest.raises(
        UsageError,
        match=r"1000000 processes .* need up to 8000024 open files, .* \d+ more; give `workers` 0, or raise the",
    ):
        memory.require_open_files(1_000_000)
