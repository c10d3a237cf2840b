"""Losses of restored images against numbers worked by hand, torch's own, and what must not get a gradient."""

from __future__ import annotations

import math
import urllib.error
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from anban.errors import InputError
from anban.formulas import formulas
from anban.losses import restoration
from anban.losses.restoration import (
    FeatureEncoder,
    charbonnier,
    distillation,
    gan,
    gram,
    l1,
    l2,
    lsgan,
    perceptual,
    texture,
)

PAIRED: list[Callable[..., Tensor]] = [l1, l2, charbonnier, distillation]


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def encoder(channels: int = 4) -> FeatureEncoder:
    """A small one of random weights, which only a test may want."""
    torch.manual_seed(0)
    return FeatureEncoder(
        nn.Sequential(nn.Conv2d(3, channels, 3, padding=1), nn.ReLU()), imagenet_scale=False
    )


def test_differences_by_hand() -> None:
    restored, target = torch.tensor([[[[1.0, 5.0]]]]), torch.tensor([[[[1.0, 2.0]]]])
    assert l1(restored, target).item() == 1.5
    assert l2(restored, target).item() == 4.5
    assert charbonnier(restored, target, epsilon=4.0).item() == pytest.approx((4 + 5) / 2)


@pytest.mark.parametrize("loss", PAIRED)
def test_half_precision_is_computed_in_float32(loss: Callable[..., Tensor]) -> None:
    restored, target = drawn(1, 1, 64, 64).bfloat16(), drawn(1, 1, 64, 64, seed=1).bfloat16()
    assert loss(restored, target).dtype == torch.float32
    assert torch.equal(loss(restored, target), loss(restored.float(), target.float()))


@pytest.mark.parametrize(
    "loss", [*PAIRED, *(lambda *x, f=f: f(*x, encoder=encoder()) for f in (texture, perceptual))]
)
def test_images_of_different_shapes_are_refused(loss: Callable[..., Tensor]) -> None:
    with pytest.raises(ValueError, match="target is"):
        loss(drawn(1, 1, 4, 4), drawn(1, 1, 4, 5))


def test_critics_losses_are_torchs() -> None:
    scores = 3 * drawn(2, 1, 4, 4)
    for real in (True, False):
        wanted = torch.full_like(scores, float(real))
        torch.testing.assert_close(gan(scores, real=real), F.binary_cross_entropy_with_logits(scores, wanted))
        torch.testing.assert_close(lsgan(scores, real=real), F.mse_loss(scores, wanted))
    assert gan(torch.tensor([1e4]), real=False).isfinite()
    assert gan(torch.zeros(3), real=True).item() == pytest.approx(math.log(2))


def test_the_teacher_learns_nothing() -> None:
    student, teacher = drawn(1, 1, 4, 4).requires_grad_(), drawn(1, 1, 4, 4, seed=1).requires_grad_()
    (distillation(student, teacher) + distillation(student, teacher, norm="l2")).backward()
    assert student.grad is not None
    assert teacher.grad is None


def test_gram_by_hand_and_by_batch() -> None:
    features = torch.tensor([[[[1.0, 2.0]], [[0.0, 3.0]]]]).repeat(2, 1, 1, 1)
    assert gram(features)[1].tolist() == [[5 / 4, 6 / 4], [6 / 4, 9 / 4]]
    assert torch.equal(gram(features, by_batch=True), gram(features) / 2)


def test_texture_does_not_see_where_things_are_and_the_diarys_hardly_sees_anything() -> None:
    image = drawn(2, 1, 6, 6)
    moved = image.flip(-1)
    flips = FeatureEncoder(nn.Conv2d(3, 5, 1), imagenet_scale=False)
    assert texture(image, moved, encoder=flips).item() == pytest.approx(0, abs=1e-10)
    assert texture(image, 2 * moved, encoder=flips) > 0
    # Of the images themselves: one number each, blind to a change of sign.
    assert texture(image, -image, encoder=nn.Identity()) == 0
    by_batch = texture(image, 2 * image, encoder=nn.Identity(), by_batch=True)
    torch.testing.assert_close(texture(image, 2 * image, encoder=nn.Identity()) / 4, by_batch)


def test_perceptual_gradients_reach_the_image_but_no_weights() -> None:
    features, image, target = encoder(), drawn(1, 1, 6, 6).requires_grad_(), drawn(1, 1, 6, 6, seed=1)
    loss = perceptual(image, target, encoder=features)
    torch.testing.assert_close(loss, F.mse_loss(features(image), features(target)))
    loss.backward()
    assert image.grad is not None
    assert image.grad.abs().max() > 0
    assert all(p.grad is None for p in features.parameters())


def test_the_diarys_perceptual_loss_is_a_number_only() -> None:
    image, target = drawn(1, 1, 6, 6).requires_grad_(), drawn(1, 1, 6, 6, seed=1)
    loss = perceptual(image, target, encoder=encoder(), gradient=False)
    assert not loss.requires_grad
    assert loss.item() == pytest.approx(perceptual(image, target, encoder=encoder()).item())


def test_one_channel_is_seen_three_times_in_the_scale_of_imagenet() -> None:
    plain, scaled = (FeatureEncoder(nn.Identity(), imagenet_scale=scale) for scale in (False, True))
    gray = torch.rand(1, 1, 3, 3, generator=torch.Generator().manual_seed(0))
    assert torch.equal(plain(gray), gray.repeat(1, 3, 1, 1))
    torch.testing.assert_close(scaled(gray)[0, 2], (gray[0, 0] - 0.406) / 0.225)
    with pytest.raises(ValueError, match="images of 2 channels"):
        plain(torch.zeros(1, 2, 3, 3))


def test_an_encoder_never_trains() -> None:
    features = FeatureEncoder(nn.Sequential(nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2)))
    assert not any(part.training for part in features.train().modules())


def test_vgg_without_its_weights_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any, **options: Any) -> Any:
        raise urllib.error.URLError("no connection")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", fail)
    with pytest.raises(InputError, match="weights of vgg16 cannot be had") as error:
        FeatureEncoder.vgg()
    assert "checkpoints/vgg16-397923af.pth" in str(error.value)


def test_vgg_has_the_layers_asked_for_and_the_weights_that_came(monkeypatch: pytest.MonkeyPatch) -> None:
    layers = torchvision.models.vgg.make_layers(torchvision.models.vgg.cfgs["D"])
    state = {f"features.{name}": tensor for name, tensor in layers.state_dict().items()}
    state["classifier.0.weight"] = torch.zeros(1)
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", lambda *args, **options: state)
    features = FeatureEncoder.vgg(layers=9, imagenet_scale=False)
    image = drawn(1, 3, 16, 16)
    torch.testing.assert_close(features(image), layers[:9](image))
    assert features(image).shape == (1, 128, 8, 8)
    assert 16 // features(image).shape[-1] == FeatureEncoder.vgg_stride(layers=9)
    assert (FeatureEncoder.vgg_stride(), FeatureEncoder.vgg_stride("vgg19", 37)) == (16, 32)


def test_every_loss_states_its_formula() -> None:
    for loss in (l1, l2, charbonnier, distillation, gan, lsgan, texture, perceptual):
        assert len(formulas(loss.__doc__)) == 1, loss
        assert loss.__module__ == restoration.__name__
