"""Checkpoints of other programs: each wrapping that people have, and what is damaged, hostile or ambiguous."""

from __future__ import annotations

import argparse
import functools
import logging
import os
import pickle
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from effdet import DetBenchPredict
from safetensors.torch import save_file

from edge_effdet.errors import CheckpointError, UsageError
from edge_effdet.evaluation.members import load_members
from edge_effdet.graph.export import load_source
from edge_effdet.models.checkpoint import SourceOptions, load_foreign, load_network, open_checkpoint
from edge_effdet.models.foreign import file_format, read_foreign_weights
from edge_effdet.models.zoo import model_spec
from edge_effdet.training.options import ModelOptions
from edge_effdet.training.start import starting_network
from tests.networks import random_network

SPEC = model_spec("tf_efficientdet_lite0", ("disc", "bar"), image_size=(64, 64))
TOLD = SourceOptions(model=SPEC.name, classes="disc,bar", image_size=(64, 64))


@pytest.fixture(scope="module")
def state():
    """What is to be found in each wrapping. Half of its precision keeps the files small; it is exact in FP32."""
    network = random_network(SPEC, settled=False)
    return OrderedDict(
        (name, tensor.half() if tensor.is_floating_point() else tensor) for name, tensor in network.state_dict().items()
    )


def under(prefix, state):
    return OrderedDict((prefix + name, tensor) for name, tensor in state.items())


def zeros(state):
    return OrderedDict((name, torch.zeros_like(tensor)) for name, tensor in state.items())


OPTIONS = argparse.Namespace(lr=0.1, model=SPEC.name, output=Path("out"), metric=np.float64(0.5))

WRAPPINGS = {
    "plain.pt": lambda state: state,
    "plain.pth.tar": lambda state: {"epoch": 3, "arch": SPEC.name, "state_dict": state, "version": 2},
    "model_best.pth.tar": lambda state: {
        "epoch": 3,
        "state_dict": under("model.", zeros(state)),
        "state_dict_ema": under("model.", state),
        "optimizer": {"state": {0: {"step": torch.zeros(1), "exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 0.1}]},
        "args": OPTIONS,
        "metric": np.float64(0.3),
    },
    "ns.pth": lambda state: {"epoch": 3, "state_dict": under("model.", state), "args": OPTIONS},
    "ema_module.pth": lambda state: {
        "state_dict_ema": under("module.model.", state),
        "state_dict": under("module.model.", zeros(state)),
    },
    "ema_model_module.pth": lambda state: {"state_dict_ema": under("model.module.", state)},
    "nested_ema.pth": lambda state: {"model": zeros(state), "ema": {"module": state, "updates": 7, "decay": 0.999}},
    "model_ema.pth": lambda state: {"model": zeros(state), "model_ema": under("module.", state)},
    "lightning.ckpt": lambda state: {
        "state_dict": {**under("model.model.", state), "model.anchors.boxes": torch.zeros(9, 4)},
        "epoch": 1,
        "global_step": 3,
        "pytorch-lightning_version": "2.0",
        "hyper_parameters": {"lr": 1e-3},
    },
    "lightning_ema.ckpt": lambda state: {
        "state_dict": {**under("net.", zeros(state)), **under("ema.module.", state), "criterion.alpha": torch.zeros(1)}
    },
    "kaggle.bin": lambda state: {"model_state_dict": state, "optimizer_state_dict": {}, "best_summary_loss": 0.3},
    "netprefix.pth": lambda state: under("net.", state),
    "compiled.pth": lambda state: under("_orig_mod.", state),
    "ddp_compiled.pth": lambda state: under("module._orig_mod.model.", state),
    "compiled_backbone.pth": lambda state: {
        name.replace("backbone.", "backbone._orig_mod."): tensor for name, tensor in state.items()
    },
    "swa.pth": lambda state: {**under("module.", state), "n_averaged": torch.tensor(3)},
    "another_key.pth": lambda state: {"weights_of_epoch_3": {"detector": under("detector.", state)}},
    "another_suffix": lambda state: {"net": state},
}


def assert_loaded(path, state):
    loaded = load_network(open_checkpoint(path, TOLD)).state_dict()
    for name, tensor in state.items():
        if not name.endswith("num_batches_tracked"):
            assert torch.equal(loaded[name], tensor.float()), name


@pytest.mark.parametrize("name", WRAPPINGS)
def test_a_wrapping_gives_the_networks_tensors(tmp_path, state, name):
    torch.save(WRAPPINGS[name](state), tmp_path / name)
    assert_loaded(tmp_path / name, state)


def test_the_format_before_pytorch_1_6_and_safetensors_under_any_suffix_load(tmp_path, state):
    torch.save(state, tmp_path / "old.weights", _use_new_zipfile_serialization=False)
    assert_loaded(tmp_path / "old.weights", state)
    save_file(under("model.", state), tmp_path / "model.bin")
    assert_loaded(tmp_path / "model.bin", state)


def test_the_pth_of_effdets_bench_loads_without_its_anchors(tmp_path, state):
    bench = DetBenchPredict(random_network(SPEC, settled=False)).state_dict()
    assert "anchors.boxes" in bench
    torch.save(bench, tmp_path / "bench.pth")
    assert_loaded(tmp_path / "bench.pth", {name.removeprefix("model."): bench[name] for name in under("model.", state)})


def test_what_was_chosen_stripped_and_left_out_is_said(tmp_path, state, caplog):
    caplog.set_level(logging.INFO)
    path = tmp_path / "run.ckpt"
    other = {"criterion.alpha": torch.zeros(1)}
    torch.save({"state_dict": {**under("net.", zeros(state)), **other}, "ema": under("model.", state)}, path)
    load_foreign(path, SPEC)
    assert "the averaged weights (EMA) are taken, under ema[model.*]" in caplog.text
    assert "all 588 tensors fit but for the prefix model." in caplog.text
    caplog.clear()
    torch.save({**under("detector.", state), **other}, path)
    load_foreign(path, SPEC)
    assert "left out 1 tensors beside the network's (first: criterion.alpha)" in caplog.text


def test_averaged_weights_that_lack_tensors_are_not_taken_and_that_is_said(tmp_path, state, caplog):
    """Some programs average the parameters and not the statistics of batch norms."""
    shadow = {name: torch.zeros_like(tensor) for name, tensor in state.items() if "running" not in name}
    torch.save({"model": state, "ema": {"shadow": shadow}}, tmp_path / "run.pth")
    assert_loaded(tmp_path / "run.pth", state)
    assert "the averaged weights (EMA) under ema.shadow lack" in caplog.text


def test_two_networks_in_one_file_are_told(tmp_path, state):
    path = tmp_path / "distilled.pth"
    for both, places in (
        ({**under("teacher.", zeros(state)), **under("student.", state)}, r"\[teacher\.\*\], \[student\.\*\]"),
        ({**zeros(state), **under("module.", state)}, r"\[\*\], \[module\.\*\]"),
        ({"best": state, "last": {"state": zeros(state)}}, r"best, last\.state"),
    ):
        torch.save(both, path)
        with pytest.raises(CheckpointError, match=rf"distilled\.pth holds several networks, under {places}; save"):
            load_foreign(path, SPEC)
    torch.save({"best": state, "last": state}, path)
    assert_loaded(path, state)


def test_what_does_not_fit_is_told_by_number(tmp_path, state):
    torch.save({"state_dict": under("model.", state)}, tmp_path / "two.pth")
    three = model_spec(SPEC.name, ("a", "b", "c"), image_size=(64, 64))
    with pytest.raises(CheckpointError, match=r"two\.pth predicts 2 classes and 3 were expected"):
        load_foreign(tmp_path / "two.pth", three)
    cut = {name: tensor for name, tensor in state.items() if not name.startswith("box_net.")}
    torch.save({"state_dict": under("model.", cut)}, tmp_path / "cut.pth")
    with pytest.raises(
        CheckpointError, match=r"cut\.pth is not a .*: of 588 tensors \d+ are missing .* \(missing box_net\."
    ):
        load_foreign(tmp_path / "cut.pth", SPEC)
    torch.save({"fc.weight": torch.zeros(2), "fc.bias": torch.zeros(2)}, tmp_path / "stranger.pth")
    with pytest.raises(
        CheckpointError, match=r"stranger\.pth is not a .*: of 588 tensors 588 are missing .* 2 are unknown"
    ):
        load_foreign(tmp_path / "stranger.pth", SPEC)


def hostile(call, *arguments):
    class Hostile:
        def __reduce__(self):
            return call, arguments

    return Hostile()


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("place", ["weight", "beside"])
def test_pickled_code_is_refused_and_does_not_run(tmp_path, state, zipped, place):
    marker, path = tmp_path / "it_ran", tmp_path / "hostile.pth"
    code = hostile(os.mkdir, str(marker))
    content = (
        {"weight": code}
        if place == "weight"
        else {"state_dict": dict(list(state.items())[:3]), "args": argparse.Namespace(a=code)}
    )
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(
        CheckpointError, match=r"hostile\.pth contains pickled code \(posix\.mkdir\), .*save only model\.state_dict"
    ):
        load_foreign(path, SPEC)
    assert not marker.exists()
    torch.load(path, weights_only=False)
    assert marker.exists(), "the hostile file does nothing even when its code runs"


@pytest.mark.parametrize(
    "code",
    [
        lambda marker: hostile(eval, f"__import__('os').mkdir({marker!r})"),
        lambda marker: hostile(functools.partial(os.mkdir, marker)),
        lambda marker: hostile(np.load, marker),
        lambda marker: np.array([hostile(os.mkdir, marker)], object),
        lambda marker: Path(marker),
    ],
    ids=["eval", "partial", "numpy", "array of objects", "path"],
)
def test_what_is_let_through_runs_nothing(tmp_path, code):
    """Paths and NumPy's values are let through, and are no door for what they could hold."""
    marker = tmp_path / "it_ran"
    torch.save({"weight": torch.zeros(1), "args": code(str(marker))}, tmp_path / "file.pth")
    try:
        read_foreign_weights(tmp_path / "file.pth", ["weight"])
    except CheckpointError as error:
        assert "contains pickled" in str(error)
    assert not marker.exists()


def test_a_bare_pickle_is_refused(tmp_path):
    marker = tmp_path / "it_ran"
    (tmp_path / "bare.pkl").write_bytes(pickle.dumps(hostile(os.mkdir, str(marker)), protocol=2))
    with pytest.raises(CheckpointError, match=r"bare\.pkl .*contains pickled"):
        load_foreign(tmp_path / "bare.pkl", SPEC)
    assert not marker.exists()


def test_a_pickled_module_is_refused(tmp_path):
    torch.save(torch.nn.Conv2d(1, 1, 1), tmp_path / "module.pth")
    with pytest.raises(
        CheckpointError, match=r"module\.pth contains pickled code \(torch\.nn\.modules\.conv\.Conv2d\).*state_dict"
    ):
        load_foreign(tmp_path / "module.pth", SPEC)


def test_a_torchscript_program_is_refused(tmp_path):
    torch.jit.script(torch.nn.Conv2d(1, 1, 1)).save(tmp_path / "program.pt")
    with pytest.raises(CheckpointError, match=r"program\.pt is a TorchScript program.*state_dict"):
        load_foreign(tmp_path / "program.pt", SPEC)


@pytest.mark.parametrize("keep", [0, 1, 30, 20_000, -1])
def test_a_truncated_file_is_named(tmp_path, state, keep):
    torch.save(state, tmp_path / "whole.pth")
    (tmp_path / "cut.pth").write_bytes((tmp_path / "whole.pth").read_bytes()[:keep])
    with pytest.raises(CheckpointError, match=r"cut\.pth is (truncated|damaged|not)") as caught:
        load_foreign(tmp_path / "cut.pth", SPEC)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [{}, {"weight": 3}, [torch.zeros(2)], torch.zeros(2), 3])
def test_a_file_without_weights_is_named(tmp_path, content):
    torch.save(content, tmp_path / "odd.pth")
    with pytest.raises(CheckpointError, match=r"odd\.pth holds no dictionary of weights"):
        load_foreign(tmp_path / "odd.pth", SPEC)


def test_every_stage_takes_the_same_file(tmp_path, state):
    path = tmp_path / "model_best.pth.tar"
    torch.save(WRAPPINGS[path.name](state), path)
    name = "backbone.conv_stem.weight"
    exported = load_source(path, SPEC.name, (64, 64), "disc,bar")
    assert exported[1] == SPEC
    (opened,), (member,) = load_members([path], "cpu", TOLD)
    assert opened.spec == member.spec == SPEC
    started = starting_network(SPEC, ModelOptions(checkpoint=path, model=SPEC.name))
    for network in (exported[0], member.runner.detector.network, started):
        assert torch.equal(network.state_dict()[name], state[name].float())
    with pytest.raises(UsageError, match=r"model_best\.pth\.tar does not say which model it is"):
        load_members([path], "cpu")


def test_a_header_whose_length_begins_as_a_pickle_does_is_one_of_safetensors(tmp_path):
    """The length of the header is a multiple of 8, so that one file in 32 begins with the byte 0x80."""
    path = tmp_path / "a.safetensors"
    for padding in range(0, 512, 8):
        save_file({"a": torch.zeros(1)}, path, metadata={"padding": "x" * padding})
        assert file_format(path) == "safetensors"
        if path.read_bytes()[0] == 0x80:
            return
    pytest.fail("no header had such a length")
