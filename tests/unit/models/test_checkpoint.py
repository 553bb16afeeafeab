"""Checkpoints: writing and reading, and files that are damaged, foreign, hostile or of another model."""

from __future__ import annotations

import json
import re

import pytest
import torch
from safetensors.torch import load_file, save_file

from edge_effdet.artifacts import ModelSpec, file_sha256
from edge_effdet.errors import CheckpointError, UsageError
from edge_effdet.models.checkpoint import (
    SourceOptions,
    describes_itself,
    is_checkpoint,
    load_foreign,
    load_network,
    load_weights,
    main,
    open_checkpoint,
    save_checkpoint,
    tensors_sha256,
)
from edge_effdet.models.zoo import create_network, model_spec

SPEC = model_spec("tf_efficientdet_lite0", ("disc", "bar"), (3, 7), (64, 64))
PROVENANCE = {"command": "train", "val": {"AP": 0.5, "AP_small": None}}


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    built = create_network(SPEC).eval()
    generator = torch.Generator().manual_seed(1)
    # Batch norms start as the identity, which would hide that one is not stored.
    for module in built.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1, generator=generator)
            module.running_var.uniform_(0.5, 2, generator=generator)
    return built


@pytest.fixture(scope="module")
def saved(network, tmp_path_factory):
    return save_checkpoint(
        tmp_path_factory.mktemp("saved") / "best.safetensors", network.state_dict(), SPEC, PROVENANCE
    )


def weights_of(module):
    return {name: tensor for name, tensor in module.state_dict().items() if "num_batches" not in name}


def test_a_checkpoint_comes_back(network, saved):
    opened = open_checkpoint(saved.path)
    assert opened == saved
    assert (opened.spec, opened.provenance, opened.sha256) == (SPEC, PROVENANCE, file_sha256(saved.path))
    loaded = load_network(opened)
    assert not loaded.training
    for name, tensor in weights_of(loaded).items():
        assert torch.equal(tensor, network.state_dict()[name]), name
    images = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        for ours, expected in zip(loaded(images)[0], network(images)[0], strict=True):
            assert torch.equal(ours, expected)


def test_the_same_weights_give_the_same_bytes(network, saved, tmp_path):
    again = save_checkpoint(tmp_path / "again.safetensors", network.state_dict(), SPEC, PROVENANCE)
    assert again.sha256 == saved.sha256


def test_half_is_half_the_size_and_loads_as_fp32(network, saved, tmp_path):
    half = save_checkpoint(tmp_path / "half.safetensors", network.state_dict(), SPEC, {}, half=True)
    assert half.path.stat().st_size < 0.52 * saved.path.stat().st_size
    assert {tensor.dtype for tensor in load_file(half.path).values()} == {torch.float16}
    for name, tensor in weights_of(load_network(open_checkpoint(half.path))).items():
        assert tensor.dtype == torch.float32
        # FP16 rounds to 11 bits: the error is half a unit of the last one, or half the smallest step below the normal range.
        torch.testing.assert_close(tensor, network.state_dict()[name], rtol=2**-11, atol=2**-25)


@pytest.mark.parametrize(("value", "half"), [(float("nan"), False), (float("inf"), False), (1e6, True)])
def test_weights_that_are_not_finite_are_not_written(network, tmp_path, value, half):
    weights = dict(network.state_dict())
    weights["class_net.predict.conv_pw.bias"] = torch.full_like(weights["class_net.predict.conv_pw.bias"], value)
    with pytest.raises(CheckpointError, match=r"best\.safetensors hold values that are not finite"):
        save_checkpoint(tmp_path / "best.safetensors", weights, SPEC, {}, half)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_checkpoint_is_named(tmp_path):
    for load in (open_checkpoint, lambda path: load_foreign(path, SPEC)):
        with pytest.raises(CheckpointError, match=r"no checkpoint at .*absent"):
            load(tmp_path / "absent")


@pytest.mark.parametrize("keep", [0, 4, 8, 100, 5000, -1])
def test_a_truncated_checkpoint_is_named(saved, tmp_path, keep):
    path = tmp_path / "cut.safetensors"
    path.write_bytes(saved.path.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match=r"cut\.safetensors is not a whole safetensors file") as caught:
        open_checkpoint(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("position", [0.0, 0.5, 1.0])
def test_one_changed_byte_among_the_weights_is_told(saved, tmp_path, position):
    """The header stays whole, so that the file opens; only a weight has another value."""
    content = bytearray(saved.path.read_bytes())
    start = 8 + int.from_bytes(content[:8], "little")
    content[start + round(position * (len(content) - 1 - start))] ^= 1
    path = tmp_path / "flipped.safetensors"
    path.write_bytes(content)
    opened = open_checkpoint(path)
    with pytest.raises(CheckpointError, match=r"flipped\.safetensors is damaged: its weights do not match the hash"):
        load_network(opened)


def test_a_half_checkpoint_is_checked_too(network, tmp_path):
    half = save_checkpoint(tmp_path / "half.safetensors", network.state_dict(), SPEC, {}, half=True)
    content = bytearray(half.path.read_bytes())
    content[-1] ^= 128
    half.path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"half\.safetensors is damaged"):
        load_network(half)


def test_a_checkpoint_from_before_the_hash_loads_with_a_warning(network, tmp_path, caplog):
    text = json.dumps({"spec": SPEC.to_dict(), "provenance": PROVENANCE})
    save_file(weights_of(network), tmp_path / "older.safetensors", {"edge_effdet": text})
    loaded = load_network(open_checkpoint(tmp_path / "older.safetensors"))
    assert torch.equal(loaded.class_net.predict.conv_pw.weight, network.class_net.predict.conv_pw.weight)
    assert "older.safetensors has no hash of its weights" in caplog.text


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused_by_their_name(network, tmp_path, value):
    weights = {name: tensor.clone() for name, tensor in weights_of(network).items()}
    weights["class_net.predict.conv_pw.bias"][0] = value
    text = json.dumps({"spec": SPEC.to_dict(), "provenance": {}, "tensors_sha256": tensors_sha256(weights)})
    save_file(weights, tmp_path / "diverged.safetensors", {"edge_effdet": text})
    with pytest.raises(CheckpointError, match=r"not finite \(class_net\.predict\.conv_pw\.bias\)"):
        load_network(open_checkpoint(tmp_path / "diverged.safetensors"))
    # Those of another program too.
    weights["class_net.predict.conv_pw.bias"][0] = float("inf")
    save_file(weights, tmp_path / "foreign.safetensors")
    with pytest.raises(CheckpointError, match="not finite"):
        load_foreign(tmp_path / "foreign.safetensors", SPEC)


@pytest.mark.parametrize(
    "change",
    [
        {"class_names": ["disc", "disc"]},
        {"class_names": ["disc", "bar", "third"]},
        {"preprocess": {"mean": [0.5, 0.5, 0.5], "std": [1.0, 0.0, 1.0]}},
    ],
)
def test_a_description_that_makes_no_sense_is_refused(network, tmp_path, change):
    text = json.dumps({"spec": {**SPEC.to_dict(), **change}, "provenance": {}, "tensors_sha256": ""})
    save_file(weights_of(network), tmp_path / "odd.safetensors", {"edge_effdet": text})
    with pytest.raises(CheckpointError, match=r"odd\.safetensors has a damaged model description"):
        open_checkpoint(tmp_path / "odd.safetensors")


@pytest.mark.parametrize("text", ["3", "[]", "[" * 100_000 + "]" * 100_000])
def test_a_description_of_another_kind_is_refused(network, tmp_path, text):
    save_file(weights_of(network), tmp_path / "odd.safetensors", {"edge_effdet": text})
    with pytest.raises(CheckpointError, match="damaged model description"):
        open_checkpoint(tmp_path / "odd.safetensors")


def test_the_hash_of_tensors_is_of_names_types_shapes_and_values():
    tensors = {"b": torch.arange(6.0).reshape(2, 3), "a": torch.tensor(7, dtype=torch.int64)}
    first = tensors_sha256(tensors)
    assert re.fullmatch(r"[0-9a-f]{64}", first)
    same = {"a": tensors["a"].clone(), "b": tensors["b"].t().contiguous().t()}
    assert not same["b"].is_contiguous()
    assert tensors_sha256(same) == first
    others = [
        {**tensors, "b": tensors["b"] + 1},
        {**tensors, "b": tensors["b"].reshape(3, 2)},
        {**tensors, "b": tensors["b"].view(torch.int32)},
        {"c": tensors["b"], "a": tensors["a"]},
        {"b": tensors["b"]},
        {**tensors, "c": torch.zeros(0)},
        {},
    ]
    hashes = {tensors_sha256(other) for other in others}
    assert len(hashes | {first}) == len(others) + 1
    assert tensors_sha256({"x": torch.ones(3, dtype=torch.bfloat16)}) != tensors_sha256({"x": torch.ones(3).half()})


def test_a_file_of_another_kind_is_named(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"words " * 100)
    with pytest.raises(CheckpointError, match=r"model\.safetensors is not a whole safetensors file"):
        open_checkpoint(tmp_path / "model.safetensors")


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}])
def test_safetensors_of_another_program_need_a_model(network, tmp_path, metadata):
    path = tmp_path / "foreign.safetensors"
    save_file(weights_of(network), path, metadata)
    assert not describes_itself(path)
    with pytest.raises(UsageError, match=r"foreign\.safetensors does not say which model it is.*give `model` NAME"):
        open_checkpoint(path)
    opened = open_checkpoint(path, SourceOptions(model=SPEC.name, classes="disc, bar", image_size=(64, 64)))
    assert (opened.spec.name, opened.spec.class_names, opened.spec.image_size) == (SPEC.name, ("disc", "bar"), (64, 64))
    assert (opened.sha256, opened.provenance) == (file_sha256(path), {})
    for name, tensor in weights_of(load_network(opened)).items():
        assert torch.equal(tensor, network.state_dict()[name]), name


@pytest.mark.parametrize(
    ("told", "said"),
    [
        ({"model": "tf_efficientdet_d0"}, r"is a tf_efficientdet_lite0, not a tf_efficientdet_d0; leave `model` out"),
        ({"classes": "disc"}, r"has 2 classes \(disc, bar…\) and `classes` names 1; leave `classes` out"),
        ({"image_size": (128, 128)}, r"was trained at 64x64; leave `image_size` out"),
        ({"fusion": "fast"}, r"sums its BiFPN's inputs by sum; leave `fusion` out"),
    ],
)
def test_what_a_checkpoint_says_is_not_contradicted(saved, told, said):
    assert describes_itself(saved.path)
    assert open_checkpoint(saved.path, SourceOptions(model=SPEC.name, classes="disc,bar", image_size=(64, 64))) == saved
    with pytest.raises(UsageError, match=said):
        open_checkpoint(saved.path, SourceOptions(**told))


def test_the_state_of_a_run_is_no_checkpoint(tmp_path):
    save_file({"weight": torch.zeros(2)}, tmp_path / "resume.safetensors", {"edge_effdet_resume": "{}"})
    with pytest.raises(CheckpointError, match=r"state of a run that `resume` goes on with; give best\.safetensors"):
        open_checkpoint(tmp_path / "resume.safetensors")


@pytest.mark.parametrize(
    ("name", "content", "is_one"),
    [
        ("a.bin", b"PK\x03\x04", True),
        ("a.ckpt", b"\x80\x02", True),
        ("a.weights", b"\x10\0\0\0\0\0\0\0{", True),
        ("a.safetensors", b"", True),
        ("a.onnx", b"\x08\x0a\x12\x04", False),
        ("a.engine", b"ftrt", False),
    ],
)
def test_a_checkpoint_is_recognised_by_its_content(tmp_path, name, content, is_one):
    (tmp_path / name).write_bytes(content)
    assert is_checkpoint(tmp_path / name) == is_one
    assert not is_checkpoint(tmp_path / "absent.pth")


def test_a_copy_of_another_programs_file_says_which_model_it_holds(network, tmp_path):
    torch.save({"model_state_dict": network.state_dict()}, tmp_path / "kaggle.bin")
    told = ["--model", SPEC.name, "--classes", "disc,bar", "--image-size", "64"]
    assert main([str(tmp_path / "kaggle.bin"), str(tmp_path / "own.safetensors"), *told]) == 0
    assert open_checkpoint(tmp_path / "own.safetensors").spec.class_names == ("disc", "bar")


@pytest.mark.parametrize("text", ["", "{", "{}", "[]", '{"spec": {}}', '{"spec": null}', "3"])
def test_a_damaged_description_is_told(tmp_path, text):
    save_file({"weight": torch.zeros(2)}, tmp_path / "damaged.safetensors", {"edge_effdet": text})
    with pytest.raises(CheckpointError, match=r"damaged\.safetensors has a damaged model description"):
        open_checkpoint(tmp_path / "damaged.safetensors")


def test_another_class_count_is_told_by_its_number(network):
    three = model_spec(SPEC.name, ("a", "b", "c"), image_size=(64, 64))
    with pytest.raises(CheckpointError, match="source predicts 2 classes and 3 were expected"):
        load_weights(three, network.state_dict(), "source")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (
            "tf_efficientdet_d0",
            r"of 676 tensors 88 are missing and 0 have another shape, and 0 are unknown \(missing backbone",
        ),
        (
            "tf_efficientdet_lite1",
            r"of \d+ tensors \d+ are missing and \d+ have another shape.* is \[[\d, ]+\] and not \[[\d, ]+\]",
        ),
    ],
)
def test_another_architecture_is_told(network, name, said):
    """lite1's head is wider than lite0's, so its tensors have other shapes with the same classes."""
    other = model_spec(name, ("disc", "bar"), image_size=(64, 64))
    with pytest.raises(CheckpointError, match=rf"source is not a {name}: {said}.*; give the `model`"):
        load_weights(other, network.state_dict(), "source")


@pytest.mark.parametrize("fusion", ["fast", "softmax", "unbounded", "sum"])
def test_a_checkpoint_comes_back_with_its_fusion(tmp_path, fusion):
    spec = model_spec(SPEC.name, ("a",), image_size=(64, 64), fusion=fusion)
    torch.manual_seed(0)
    built = create_network(spec).eval()
    for module in built.fpn.modules():
        if isinstance(getattr(module, "edge_weights", None), torch.nn.Parameter):
            torch.nn.init.normal_(module.edge_weights, 1, 0.5)
    save_checkpoint(tmp_path / "best.safetensors", built.state_dict(), spec, {})
    opened = open_checkpoint(tmp_path / "best.safetensors")
    assert opened.spec.fusion == fusion
    images = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        for ours, expected in zip(load_network(opened)(images)[0], built(images)[0], strict=True):
            assert torch.equal(ours, expected)


@pytest.mark.parametrize("fusion", ["fast", "softmax", "unbounded"])
def test_weights_of_another_fusion_are_told(network, fusion):
    weighted = model_spec(SPEC.name, SPEC.class_names, SPEC.category_ids, SPEC.image_size, fusion)
    with pytest.raises(
        CheckpointError, match=rf"source is a {SPEC.name} with BiFPN fusion sum, which.*, and {fusion} was expected"
    ):
        load_weights(weighted, network.state_dict(), "source")
    with pytest.raises(
        CheckpointError, match=rf"source is a {SPEC.name} with BiFPN fusion fast, softmax or unbounded.* and sum was"
    ):
        load_weights(SPEC, create_network(weighted).state_dict(), "source")


def test_a_missing_and_a_surplus_tensor_are_named(network):
    weights = dict(network.state_dict())
    kept = weights.pop("box_net.predict.conv_pw.bias")
    with pytest.raises(
        CheckpointError, match=r"1 are missing .* 0 are unknown \(missing box_net\.predict\.conv_pw\.bias\)"
    ):
        load_weights(SPEC, weights, "source")
    with pytest.raises(
        CheckpointError, match=r"0 are missing and 0 have another shape, and 1 are unknown \(unknown odd\)"
    ):
        load_weights(SPEC, {**weights, "box_net.predict.conv_pw.bias": kept, "odd": kept}, "source")


def test_the_description_is_json_that_others_can_read(saved):
    from safetensors import safe_open

    with safe_open(saved.path, framework="np") as file:
        content = json.loads(file.metadata()["edge_effdet"])
    assert ModelSpec.from_dict(content["spec"]) == SPEC
