"""Groups of the optimizer, freezing, accumulation, and a state that carries everything."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from edge_effdet.errors import CheckpointError, EdgeEffDetError, UsageError
from edge_effdet.models.zoo import create_network, model_spec
from edge_effdet.training.loader import Batch
from edge_effdet.training.options import OptimizerOptions, TrainConfig
from edge_effdet.training.trainer import Trainer, backbone_depth, make_accelerator, make_step, parameter_groups

SPEC = model_spec("tf_efficientdet_lite0", ("disc", "bar"), image_size=(64, 64))


def make_batch(seed: int, count: int = 2) -> Batch:
    rng = np.random.default_rng(seed)
    images = torch.from_numpy(rng.integers(0, 256, (count, 3, 64, 64), dtype=np.uint8))
    boxes = [torch.tensor([[8.0, 8.0, 40.0, 40.0]]) for _ in range(count)]
    return Batch(images, boxes, [torch.tensor([1 + index % 2]) for index in range(count)], tuple(range(count)), ())


def make_trainer(options: TrainConfig | None = None, steps: int = 4) -> Trainer:
    options = options or TrainConfig()
    torch.manual_seed(0)
    return Trainer(create_network(SPEC), SPEC, options, steps, make_accelerator(options))


def weights(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in trainer.network.state_dict().items()}


def test_every_parameter_is_in_one_group_and_biases_and_norms_do_not_decay():
    network = create_network(SPEC)
    groups = parameter_groups(network, OptimizerOptions(weight_decay=0.1, layer_decay=0.5))
    grouped = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(grouped) == sorted(id(parameter) for parameter in network.parameters())
    for group in groups:
        assert {parameter.ndim > 1 for parameter in group["params"]} == {group["weight_decay"] > 0}
    scale_of = {id(p): group["lr_scale"] for group in groups for p in group["params"]}
    scales = {name: scale_of[id(p)] for name, p in network.named_parameters()}
    assert scales["class_net.predict.conv_pw.weight"] == 1
    assert scales["backbone.conv_stem.weight"] < scales["backbone.blocks.1.0.conv_pw.weight"] < 1
    last = max(backbone_depth(name) for name in scales)
    assert {scales[name] for name in scales if backbone_depth(name) == last} == {0.5}


def test_without_layer_decay_all_rates_are_equal():
    groups = parameter_groups(create_network(SPEC), OptimizerOptions())
    assert {group["lr_scale"] for group in groups} == {1.0}


def test_a_frozen_backbone_keeps_weights_and_statistics_until_it_is_unfrozen():
    trainer = make_trainer(TrainConfig(freeze_epochs=1))
    before = weights(trainer)
    trainer.start_epoch(0)
    trainer.step(make_batch(0), 0, 0)
    after = weights(trainer)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed and not any(name.startswith("backbone.") for name in changed)
    trainer.start_epoch(1)
    trainer.step(make_batch(1), 1, 0)
    thawed = weights(trainer)
    assert any(not torch.equal(after[name], thawed[name]) for name in after if name.startswith("backbone."))


def test_an_update_comes_after_the_accumulated_steps_and_at_the_end_of_the_epoch():
    trainer = make_trainer(TrainConfig(accumulate=2), steps=3)
    trainer.start_epoch(0)
    updates = []
    for step in range(3):
        trainer.step(make_batch(step), 0, step)
        updates.append(trainer.updates)
    assert updates == [0, 1, 2]


def test_state_and_restore_continue_to_the_last_bit():
    first = make_trainer()
    first.start_epoch(0)
    for step in range(2):
        first.step(make_batch(step), 0, step)
    tensors, numbers = first.state()
    # As a file has them: the layout in memory is lost.
    tensors = {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()}
    expected = [first.step(make_batch(step), 0, step) for step in (2, 3)]

    torch.manual_seed(99)
    second = make_trainer()
    second.restore(tensors, numbers)
    second.start_epoch(0)
    assert [second.step(make_batch(step), 0, step) for step in (2, 3)] == expected
    for part in ("network", "ema"):
        ours, theirs = second.state()[0], first.state()[0]
        assert all(torch.equal(ours[name], theirs[name]) for name in ours if name.startswith(part))


def test_refuses_the_state_of_another_network():
    trainer = make_trainer()
    tensors, numbers = trainer.state()
    name = next(name for name in tensors if name.startswith("network."))
    with pytest.raises(CheckpointError, match="another network"):
        trainer.restore({other: tensor for other, tensor in tensors.items() if other != name}, numbers)


def test_bf16_computes_other_numbers_and_keeps_the_weights_in_fp32():
    losses = {}
    for precision in ("fp32", "bf16"):
        trainer = make_trainer(TrainConfig(precision=precision, device="cpu"))
        trainer.start_epoch(0)
        losses[precision] = trainer.step(make_batch(0, count=8), 0, 0)
        assert {parameter.dtype for parameter in trainer.network.parameters()} == {torch.float32}
    assert losses["fp32"] != losses["bf16"]
    assert losses["bf16"].total == pytest.approx(losses["fp32"].total, rel=0.05)


def test_fp16_wants_a_gpu():
    with pytest.raises(UsageError, match="bf16 or fp32"):
        make_accelerator(TrainConfig(precision="fp16", device="cpu"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_refused():
    with pytest.raises(UsageError, match="`device` cpu"):
        make_accelerator(TrainConfig(device="cuda"))


def test_a_loss_that_is_not_finite_stops_the_run():
    trainer = make_trainer()
    trainer.start_epoch(0)
    with torch.no_grad():
        next(iter(trainer.network.parameters())).fill_(float("nan"))
    with pytest.raises(EdgeEffDetError, match=r"not finite in epoch 1.*`learning_rate` 0\.00025"):
        trainer.step(make_batch(0), 0, 0)


def test_the_benchmark_step_trains():
    options = TrainConfig(backbone="random", warmup_epochs=0)
    step = make_step(SPEC, options)
    batch = make_batch(0, count=4)
    losses = [step(batch.images, batch.boxes, batch.classes).total for _ in range(6)]
    assert np.isfinite(losses).all() and losses[-1] < losses[0]


def test_a_checkpoint_goes_on_at_another_size_with_anchors_of_that_size(tmp_path):
    from dataclasses import replace

    from edge_effdet.models.checkpoint import save_checkpoint
    from edge_effdet.training.start import starting_network

    save_checkpoint(tmp_path / "small.safetensors", create_network(SPEC).state_dict(), SPEC, {})
    larger = replace(SPEC, image_size=(96, 160))
    options = TrainConfig(checkpoint=tmp_path / "small.safetensors")
    trainer = Trainer(starting_network(larger, options), larger, options, 4, make_accelerator(options))
    trainer.start_epoch(0)
    batch = make_batch(0)
    wide = torch.zeros(2, 3, 96, 160, dtype=torch.uint8)
    assert np.isfinite(trainer.step(Batch(wide, batch.boxes, batch.classes, (0, 1), ()), 0, 0).total)
    assert trainer.labeler.anchors.boxes.max() > 96


def test_averages_forget_the_start_within_a_short_run():
    trainer = make_trainer(TrainConfig(warmup_epochs=0, learning_rate=1e-5), steps=40)
    trainer.start_epoch(0)
    batch = make_batch(0)
    for step in range(40):
        trainer.step(batch, 0, step)
    trainer.network.train()
    seen = {}
    norm = trainer.network.class_net.bn_rep[0][0].bn
    handle = norm.register_forward_pre_hook(lambda module, given: seen.update(x=given[0]))
    with torch.no_grad():
        trainer.network(trainer.pixels_of(batch))
    handle.remove()
    averaged = trainer.ema.module.class_net.bn_rep[0][0].bn
    mean, std = seen["x"].mean((0, 2, 3)), seen["x"].std((0, 2, 3))
    # With effdet's momentum of 0.01 two thirds of the start, a mean of 0 and a variance of 1, would be left.
    assert torch.allclose(averaged.running_mean, mean, atol=0.3 * float(std.mean()))
    assert torch.allclose(averaged.running_var.sqrt(), std, rtol=0.3)
