"""Every kind of fusion: its formula, its gradients, and the conversion of its weights to another kind."""

from __future__ import annotations

import pytest
import torch
from effdet import DetBenchTrain
from effdet.efficientdet import FpnCombine
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_effdet.artifacts import FUSIONS
from edge_effdet.models.bifpn import UnboundedFusion, convert_edge_weights, edge_factors, is_edge_weight
from edge_effdet.models.zoo import create_network, model_spec

NAME = "fpn.cell.0.fnode.0.combine.edge_weights"
WEIGHTED = [fusion for fusion in FUSIONS if fusion != "sum"]


def build(fusion, name="tf_efficientdet_lite0"):
    """A network for 128 px: for smaller inputs effdet uses one tensor for two levels, and some fusion weights get no gradient."""
    torch.manual_seed(0)
    return create_network(model_spec(name, ("disc", "bar"), image_size=(128, 128), fusion=fusion))


def nodes_of(network):
    return [node.combine for cell in network.fpn.cell for node in cell.fnode]


@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("name", ["tf_efficientdet_lite0", "tf_efficientdet_d0"])
def test_a_network_of_any_fusion_is_built_with_weights_of_1(name, fusion):
    nodes = nodes_of(build(fusion, name))
    assert len(nodes) == 24
    assert {type(node) for node in nodes} == {UnboundedFusion if fusion == "unbounded" else FpnCombine}
    for node in nodes:
        if fusion == "sum":
            assert node.edge_weights is None
        else:
            assert torch.equal(node.edge_weights, torch.ones(len(node.inputs_offsets)))


def test_weighted_kinds_have_the_same_names_in_the_same_order():
    names = [list(build(fusion).state_dict()) for fusion in WEIGHTED]
    assert names[0] == names[1] == names[2]
    assert sum(is_edge_weight(name) for name in names[0]) == 24
    assert [name for name in names[0] if not is_edge_weight(name)] == list(build("sum").state_dict())


@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0), (0.5, 2.0, 0.25), (-1.5, 0.5, 3.0)])
def test_a_node_is_its_formula(fusion, weights):
    node = next(node for node in nodes_of(build(fusion)) if len(node.inputs_offsets) == 3)
    expected = torch.tensor(weights)
    if fusion == "sum":
        expected = torch.ones(3)
    else:
        node.edge_weights.data.copy_(expected)
    if fusion == "fast":
        expected = expected.clamp(min=0) / (1e-4 + expected.clamp(min=0).sum())
    elif fusion == "softmax":
        expected = expected.exp() / expected.exp().sum()
    inputs = {offset: torch.randn(2, 64, 4, 4) for offset in range(12)}
    for offset in node.inputs_offsets:
        node.resample[str(offset)] = torch.nn.Identity()
    by_hand = sum(factor * inputs[offset] for factor, offset in zip(expected, node.inputs_offsets, strict=True))
    torch.testing.assert_close(node([inputs[offset] for offset in range(12)]), by_hand, rtol=1e-5, atol=1e-5)
    if fusion != "sum":
        torch.testing.assert_close(edge_factors(node.edge_weights.detach(), fusion), expected)


@pytest.mark.parametrize("fusion", WEIGHTED)
def test_every_weight_learns(fusion):
    """One step of training with effdet's loss moves the weights of every node."""
    network = build(fusion).train()
    bench = DetBenchTrain(network, create_labeler=True)
    weights = [node.edge_weights for node in nodes_of(network)]
    optimizer = torch.optim.SGD(network.parameters(), lr=1.0)
    targets = {"bbox": [torch.tensor([[8.0, 8.0, 40.0, 40.0]])] * 2, "cls": [torch.tensor([1.0])] * 2}
    bench(torch.randn(2, 3, 128, 128), targets)["loss"].backward()
    assert all(weight.grad is not None and torch.isfinite(weight.grad).all() for weight in weights)
    assert all((weight.grad != 0).any() for weight in weights)
    before = [weight.detach().clone() for weight in weights]
    optimizer.step()
    assert all(not torch.equal(weight, old) for weight, old in zip(weights, before, strict=True))


@given(
    weights=st.lists(st.floats(0.0625, 4, width=32), min_size=2, max_size=4),
    source=st.sampled_from(WEIGHTED),
    target=st.sampled_from(WEIGHTED),
)
@settings(max_examples=60, deadline=None)
def test_converted_weights_give_the_same_factors_or_their_ratios(weights, source, target):
    state = {NAME: torch.tensor(weights), "other": torch.zeros(2)}
    converted = convert_edge_weights(state, source, target)
    assert torch.equal(converted["other"], state["other"])
    expected, found = edge_factors(state[NAME], source), edge_factors(converted[NAME], target)
    if source == "unbounded" and target != "unbounded":
        expected = expected / expected.sum()
    # fast adds 1e-4 to its denominator, which is a sum of at least 0.1.
    torch.testing.assert_close(found, expected, rtol=2e-3, atol=1e-6)


def test_weights_that_give_no_factor_stay_finite():
    state = {NAME: torch.tensor([-1.0, -2.0])}
    assert torch.equal(convert_edge_weights(state, "fast", "unbounded")[NAME], torch.zeros(2))
    softmax = convert_edge_weights(state, "fast", "softmax")[NAME]
    assert torch.isfinite(softmax).all()
    assert torch.equal(convert_edge_weights(state, "unbounded", "unbounded")[NAME], state[NAME])


def test_a_sum_has_no_weights_to_give_or_take():
    state = {NAME: torch.tensor([0.5, 2.0]), "other": torch.zeros(2)}
    assert list(convert_edge_weights(state, "fast", "sum")) == ["other"]
    assert list(convert_edge_weights({"other": torch.zeros(2)}, "sum", "fast")) == ["other"]
