"""Choosing the best pairs of an anchor and a class: in two steps as in one."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_effdet.models import detector
from edge_effdet.models.detector import best_pairs


def logits_of(seed: int, batch: int, anchors: int, classes: int) -> torch.Tensor:
    """All different, so that the best are known without a doubt."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.stack([torch.randperm(anchors * classes, generator=generator) for _ in range(batch)])
    return order.reshape(batch, anchors, classes).float()


@settings(max_examples=50, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    batch=st.integers(1, 3),
    anchors=st.integers(1, 300),
    classes=st.integers(1, 40),
    part=st.floats(0.01, 1),
)
def test_the_pairs_are_the_best_of_all(seed: int, batch: int, anchors: int, classes: int, part: float):
    logits = logits_of(seed, batch, anchors, classes)
    count = max(1, int(part * anchors * classes))
    best, rows, class_ids = best_pairs(logits, count)
    assert class_ids.dtype == torch.int32
    assert torch.equal(best, logits.flatten(1).sort(dim=1, descending=True).values[:, :count])
    assert torch.equal(logits[torch.arange(batch)[:, None], rows, class_ids.long()], best)


@pytest.mark.parametrize(("classes", "calls"), [(3, 1), (90, 2)])
def test_only_many_classes_take_two_steps(classes: int, calls: int, monkeypatch: pytest.MonkeyPatch):
    sizes = []
    topk = torch.topk
    monkeypatch.setattr(
        detector.torch, "topk", lambda x, *rest, **more: (sizes.append(x.shape[1]), topk(x, *rest, **more))[1]
    )
    best_pairs(logits_of(0, 1, 1000, classes), 20)
    assert sizes == ([1000, 20 * classes] if calls == 2 else [1000 * classes])


def test_the_best_may_all_be_of_one_anchor():
    logits = torch.zeros(1, 100, 50)
    logits[0, 7] = torch.arange(1, 51)
    best, rows, class_ids = best_pairs(logits, 5)
    assert best.tolist() == [[50, 49, 48, 47, 46]]
    assert rows.tolist() == [[7] * 5]
    assert class_ids.tolist() == [[49, 48, 47, 46, 45]]
