r"""Losses of restored images against the true ones, of their critic and of their teacher, as pure functions.

Shapes, in the functions of two images:
    restored  (B, C, H, W), any floating type, in the units that the network works in
    target    the same shape
    result    a scalar, float32

Notation: $\hat x$ is the restored image, $x$ the true one.

All arithmetic is float32, whatever the autocast state. Shapes that do not match raise ValueError.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from pickle import UnpicklingError
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
import torchvision
from annotated_types import Ge, Gt
from torch import Tensor, nn
from torchvision.models.vgg import cfgs, make_layers

from anban.errors import InputError

Encoder = Callable[[Tensor], Tensor]

_VGG = {"vgg16": cfgs["D"], "vgg19": cfgs["E"]}


def l1(restored: Tensor, target: Tensor) -> Tensor:
    r"""Mean absolute difference.

    Formula: $\frac{1}{N} \sum_i \lvert \hat x_i - x_i \rvert$, where $\hat x$ is the restored image, $x$ the
    true one, and the sum runs over the $N$ values of a batch.
    """
    return _difference(restored, target).abs().mean()


def l2(restored: Tensor, target: Tensor) -> Tensor:
    r"""Mean squared difference.

    Formula: $\frac{1}{N} \sum_i (\hat x_i - x_i)^2$, where $\hat x$ is the restored image, $x$ the true one,
    and the sum runs over the $N$ values of a batch.
    """
    return _difference(restored, target).square().mean()


def charbonnier(restored: Tensor, target: Tensor, *, epsilon: Annotated[float, Gt(0)] = 1e-3) -> Tensor:
    r"""A smooth mean absolute difference: quadratic below about epsilon, linear above it.

    Formula: $\frac{1}{N} \sum_i \sqrt{(\hat x_i - x_i)^2 + \epsilon^2}$, where $\hat x$ is the restored
    image, $x$ the true one, and the sum runs over the $N$ values of a batch; $\epsilon$ = epsilon.

    Charbonnier et al. 1994, "Two deterministic half-quadratic regularization algorithms for computed
    imaging".

    Args:
        epsilon: in the units of the images; also the loss of a perfect result.
    """
    return (_difference(restored, target).square() + epsilon**2).sqrt().mean()


def distillation(restored: Tensor, teacher: Tensor, *, norm: Literal["l1", "l2"] = "l1") -> Tensor:
    r"""The difference to what a teacher makes of the same image; no gradient reaches the teacher.

    Formula: $\frac{1}{N} \sum_i \lvert \hat x_i - t_i \rvert^p$, where $\hat x$ is the student's image, $t$
    the teacher's, and $p$ is 1 for l1 and 2 for l2.
    """
    return (l1 if norm == "l1" else l2)(restored, teacher.detach())


def gan(scores: Tensor, *, real: bool) -> Tensor:
    r"""Cross entropy of a critic's raw scores, of any shape, with being real or not.

    Formula: $\frac{1}{N} \sum_i \log(1 + e^{\mp s_i})$, with the upper sign for real, where $s$ are the
    scores. The critic is trained with the mean of the loss of true images as real and that of restored ones
    as not real, the generator with the loss of restored ones as real.

    Goodfellow et al. 2014, "Generative Adversarial Nets", section 3, with the generator's loss that does not
    saturate.
    """
    return F.softplus(-scores.float() if real else scores.float()).mean()


def lsgan(scores: Tensor, *, real: bool) -> Tensor:
    r"""Squared distance of a critic's raw scores, of any shape, to 1 for real or to 0.

    Formula: $\frac{1}{N} \sum_i (s_i - c)^2$, where $s$ are the scores and $c$ is 1 for real, else 0. The
    critic is trained with the mean of the loss of true images as real and that of restored ones as not real,
    the generator with the loss of restored ones as real.

    Mao et al. 2017, "Least Squares Generative Adversarial Networks", section 3.2, without the factor 1/2.
    """
    return (scores.float() - float(real)).square().mean()


def gram(features: Tensor, *, by_batch: bool = False) -> Tensor:
    """How much every two channels of a map have in common: (B, C, H, W) -> (B, C, C), over C H W.

    Args:
        by_batch: divide by B too, as the diary's code does; the loss then falls with the square of the batch
            size.
    """
    rows = features.float().flatten(2)
    count = rows[0].numel() * (len(rows) if by_batch else 1)
    return rows @ rows.mT / count


def texture(restored: Tensor, target: Tensor, *, encoder: Encoder, by_batch: bool = False) -> Tensor:
    r"""Mean squared difference of the Gram matrices of features.

    Formula: $\frac{1}{B C^2} \sum_{b,j,k} \left( G_{bjk}(\hat x) - G_{bjk}(x) \right)^2$, where
    $G_{bjk}(x) = \frac{1}{C H W} \sum_i \phi_{bji}(x) \phi_{bki}(x)$, $\phi$ are features of $C$ channels and
    $H \times W$ positions, $\hat x$ is the restored image and $x$ the true one.

    Gatys et al. 2016, "Image Style Transfer Using Convolutional Neural Networks", section 2.2, for one layer.
    The diary's code takes the images themselves for features, which one channel gives one number for: its
    mean square. `nn.Identity()` is that encoder.

    Args:
        encoder: images -> features (B, C, H, W), see `FeatureEncoder`.
        by_batch: see `gram`.
    """
    _difference(restored, target)
    return l2(gram(encoder(restored), by_batch=by_batch), gram(encoder(target), by_batch=by_batch))


def perceptual(restored: Tensor, target: Tensor, *, encoder: Encoder, gradient: bool = True) -> Tensor:
    r"""Mean squared difference of features.

    Formula: $\frac{1}{N} \sum_i \left( \phi_i(\hat x) - \phi_i(x) \right)^2$, where $\phi$ are the $N$
    features of a batch, $\hat x$ is the restored image and $x$ the true one.

    Johnson et al. 2016, "Perceptual Losses for Real-Time Style Transfer and Super-Resolution", section 3.2.

    Args:
        encoder: images -> features, see `FeatureEncoder`.
        gradient: false computes the value alone, as the diary's code does by mistake: nothing is learnt from
            it.
    """
    _difference(restored, target)
    with torch.set_grad_enabled(gradient and torch.is_grad_enabled()):
        return l2(encoder(restored), encoder(target))


class FeatureEncoder(nn.Module):
    """The layers of a trained network as features of images; frozen, but gradients reach the images.

    Args:
        features: the layers, which take three channels.
        imagenet_scale: shift and scale images in 0..1 as torchvision's networks expect it; the diary's code
            does not.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, features: nn.Module, *, imagenet_scale: bool = True):
        super().__init__()
        self.features, self.imagenet_scale = features, imagenet_scale
        for name, values in (("mean", (0.485, 0.456, 0.406)), ("deviation", (0.229, 0.224, 0.225))):
            self.register_buffer(name, torch.tensor(values).reshape(3, 1, 1), persistent=False)
        self.requires_grad_(False)
        self.eval()

    @classmethod
    def vgg(
        cls,
        name: Literal["vgg16", "vgg19"] = "vgg16",
        layers: Annotated[int, Ge(1)] = 30,
        *,
        imagenet_scale: bool = True,
    ) -> FeatureEncoder:
        """The first `layers` of torchvision's VGG with ImageNet weights, downloaded if they are not cached.

        30 layers of VGG-16 end behind relu5_3 at 1/16 of the size: 4x4 positions of a patch of 64x64.

        Raises:
            InputError: the weights cannot be had, or their file is another one. Random features in their place would
            be a loss of another meaning.
        """
        source = torchvision.models.get_model_weights(name)["IMAGENET1K_V1"]
        whole, prefix = make_layers(_VGG[name]), "features."
        try:
            weights = source.get_state_dict(progress=False, check_hash=True)
            own = {key.removeprefix(prefix): x for key, x in weights.items() if key.startswith(prefix)}
            whole.load_state_dict(own)
        except (OSError, RuntimeError, EOFError, UnpicklingError) as error:  # no connection, or not that file
            raise InputError(
                f"The ImageNet weights of {name} cannot be had ({str(error).splitlines()[0]}).",
                where=Path(torch.hub.get_dir(), "checkpoints", Path(source.url).name),
                expected=f"this file, as torchvision has it at {source.url}",
                do="put it there, or leave out the losses that need it, or set their encoder to identity",
            ) from error
        return cls(whole[:layers], imagenet_scale=imagenet_scale)

    @staticmethod
    def vgg_stride(name: Literal["vgg16", "vgg19"] = "vgg16", layers: int = 30) -> int:
        """Pixels of an image per position of the features of the first `layers`, along one side."""
        kinds = [kind for entry in _VGG[name] for kind in (["pool"] if entry == "M" else ["conv", "relu"])]
        return int(2 ** kinds[:layers].count("pool"))

    def train(self, mode: bool = True) -> FeatureEncoder:
        """Stays in evaluation, whatever the network around it does."""
        del mode
        return super().train(False)

    def forward(self, images: Tensor) -> Tensor:
        """Features of (B, 1, H, W), whose channel is seen three times, or (B, 3, H, W)."""
        if images.shape[1] not in (1, 3):
            raise ValueError(f"images of {images.shape[1]} channels; the encoder takes 1 or 3")
        images = images.expand(-1, 3, -1, -1)
        if self.imagenet_scale:
            images = (images - self.mean) / self.deviation
        features: Tensor = self.features(images)
        return features


def _difference(restored: Tensor, target: Tensor) -> Tensor:
    if restored.shape != target.shape:
        raise ValueError(f"restored is {tuple(restored.shape)}, target is {tuple(target.shape)}")
    return restored.float() - target.float()
