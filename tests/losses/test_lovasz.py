"""The Lovász extension against its definition, computed set by set."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from anban.losses import lovasz_hinge, lovasz_sigmoid


def jaccard_loss(wrong: set[int], members: set[int]) -> float:
    """1 - IoU when the pixels in `wrong` are misclassified and the others are right; 0 if nothing is wrong."""
    predicted = members ^ wrong
    union = predicted | members
    return 1 - len(predicted & members) / len(union) if union else 0.0


def by_definition(errors: list[float], target: list[float]) -> float:
    members = {index for index, value in enumerate(target) if value}
    total, wrong = 0.0, set[int]()
    for index in sorted(range(len(errors)), key=lambda index: -errors[index]):
        before = jaccard_loss(wrong, members)
        wrong.add(index)
        total += max(errors[index], 0.0) * (jaccard_loss(wrong, members) - before)
    return total


@pytest.mark.parametrize("share", [0.0, 0.2, 0.5, 1.0])
def test_equals_the_definition(share):
    generator = torch.Generator().manual_seed(1)
    logit = torch.randn(1, 1, 5, 5, generator=generator) * 2
    target = (torch.rand(1, 1, 5, 5, generator=generator) < share).float()
    flat, truth = logit.flatten(), target.flatten()
    hinge = (1 - flat * (2 * truth - 1)).tolist()
    assert lovasz_hinge(logit, target).item() == pytest.approx(by_definition(hinge, truth.tolist()), rel=1e-5)
    soft = (truth - flat.sigmoid()).abs().tolist()
    assert lovasz_sigmoid(logit, target).item() == pytest.approx(
        by_definition(soft, truth.tolist()), rel=1e-5
    )


def test_by_hand():
    # Errors: change pixel at logit -1 -> 2, background at 0 -> 1, change at 3 and background at -3 -> below 0.
    # {first} wrong: IoU 1/2. With the second too: 1 of 3. Steps 1/2 and 2/3 - 1/2.
    logit = torch.tensor([[[[-1.0, 0.0, 3.0, -3.0]]]])
    target = torch.tensor([[[[1.0, 0.0, 1.0, 0.0]]]])
    assert lovasz_hinge(logit, target).item() == pytest.approx(2 * 1 / 2 + 1 * (2 / 3 - 1 / 2))


def test_hard_predictions_give_the_jaccard_loss():
    # With all margins at 2 or 0 errors the extension is twice the set function itself.
    target = torch.tensor([[[[1.0, 1.0, 1.0, 0.0, 0.0, 0.0]]]])
    signs = torch.tensor([[[[1.0, 1.0, -1.0, 1.0, -1.0, -1.0]]]])
    assert lovasz_hinge(signs, target).item() == pytest.approx(2 * (1 - 2 / 4))


def test_empty_mask_costs_its_worst_alarm():
    target = torch.zeros(1, 1, 2, 2)
    assert lovasz_hinge(torch.full((1, 1, 2, 2), -1.5), target).item() == 0
    logit = torch.tensor([[[[-2.0, 0.5], [0.0, -3.0]]]], requires_grad=True)
    cost = lovasz_hinge(logit, target)
    cost.backward()
    assert cost.item() == pytest.approx(1.5)
    assert logit.grad is not None
    assert logit.grad.flatten().tolist() == [0.0, 1.0, 0.0, 0.0]
    assert lovasz_sigmoid(logit, target).item() == pytest.approx(torch.tensor(0.5).sigmoid().item())


def test_per_image_and_per_batch_differ_as_they_should():
    generator = torch.Generator().manual_seed(2)
    logit = torch.randn(3, 1, 4, 4, generator=generator)
    target = (torch.rand(3, 1, 4, 4, generator=generator) < 0.3).float()
    each = torch.stack([lovasz_hinge(logit[i : i + 1], target[i : i + 1]) for i in range(3)])
    assert torch.allclose(lovasz_hinge(logit, target), each.mean())
    as_one: Tensor = lovasz_hinge(logit.reshape(1, 1, 12, 4), target.reshape(1, 1, 12, 4))
    assert torch.allclose(lovasz_hinge(logit, target, per_image=False), as_one)


def test_images_without_counted_pixels_are_not_in_the_mean():
    logit, target = (
        torch.randn(2, 1, 4, 4, generator=torch.Generator().manual_seed(4)),
        torch.zeros(2, 1, 4, 4),
    )
    target[:, :, 0] = 1
    valid = torch.ones_like(target)
    valid[1] = 0
    assert torch.allclose(lovasz_hinge(logit, target, valid=valid), lovasz_hinge(logit[:1], target[:1]))
