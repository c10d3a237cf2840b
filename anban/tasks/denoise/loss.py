r"""The losses of a denoising network: terms on its image, its noise and its content, and what a critic thinks of them.

Notation: $\hat x$ is the denoised image, $x$ the true one. The terms of `noise_loss` have the noise branch's output
and the difference of the noisy and the true image in their places, those of `content_loss` the content branch's
output and the true image. All are in the units of the network, weighted and summed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, Literal

from annotated_types import Ge
from torch import Tensor, nn

from anban.errors import InputError
from anban.losses import restoration
from anban.losses.restoration import FeatureEncoder
from anban.recipe.schema import Collection, NonNegative, pick
from anban.tasks.denoise.models.twin import Separated
from anban.tasks.supervision import TERM

Encoder = Literal["vgg16", "vgg19", "identity"]

_PIXELWISE = {name: f"anban.losses.restoration:{name}" for name in ("l1", "l2", "charbonnier")}
LOSSES: dict[str, str] = {
    **_PIXELWISE,
    "texture": "anban.tasks.denoise.loss:texture",
    "perceptual": "anban.tasks.denoise.loss:perceptual",
    "distillation": "anban.losses.restoration:distillation",
}
LOSS_SECTIONS: dict[str, Collection] = {
    "loss": Collection(LOSSES, common=TERM),
    "noise_loss": Collection({**_PIXELWISE, "texture": LOSSES["texture"]}, common=TERM),
    "content_loss": Collection({k: v for k, v in LOSSES.items() if k != "distillation"}, common=TERM),
}


def texture(
    restored: Tensor,
    target: Tensor,
    *,
    encoder: Encoder = "vgg16",
    layers: Annotated[int, Ge(1)] = 30,
    by_batch: bool = False,
) -> Tensor:
    r"""Mean squared difference of the Gram matrices of features; see `anban.losses.restoration.texture`.

    Formula: $\frac{1}{B C^2} \sum_{b,j,k} \left( G_{bjk}(\hat x) - G_{bjk}(x) \right)^2$, where
    $G_{bjk}(x) = \frac{1}{C H W} \sum_i \phi_{bji}(x) \phi_{bki}(x)$ and $\phi$ are the $C$ features of $H \times W$
    positions that the encoder gives.

    Args:
        encoder: of the ImageNet weights; "identity" takes the image for its features, as the diary's code does.
        layers: of the encoder that are used.
        by_batch: divide by the batch size too, as the diary's code does.
    """
    return restoration.texture(
        restored, target, encoder=_encoder(encoder, layers).to(restored.device), by_batch=by_batch
    )


def perceptual(
    restored: Tensor,
    target: Tensor,
    *,
    encoder: Encoder = "vgg16",
    layers: Annotated[int, Ge(1)] = 30,
    gradient: bool = True,
) -> Tensor:
    r"""Mean squared difference of features; see `anban.losses.restoration.perceptual`.

    Formula: $\frac{1}{N} \sum_i \left( \phi_i(\hat x) - \phi_i(x) \right)^2$, where $\phi$ are the $N$ features of a
    batch that the encoder gives.

    Args:
        encoder: of the ImageNet weights, or "identity".
        layers: of the encoder that are used.
        gradient: false computes the value alone, as the diary's code does by mistake.
    """
    return restoration.perceptual(
        restored, target, encoder=_encoder(encoder, layers).to(restored.device), gradient=gradient
    )


@cache
def _encoder(name: Encoder, layers: int) -> nn.Module:
    return nn.Identity() if name == "identity" else FeatureEncoder.vgg(name, layers)


@dataclass(frozen=True)
class Adversarial:
    """What the generator learns from a critic.

    Attributes:
        loss: of generator and critic, "gan" (cross entropy) or "lsgan" (least squares); "none" leaves the critic out.
        weight: of the generator's term.
    """

    loss: Literal["none", "gan", "lsgan"] = "none"
    weight: NonNegative = 1.0


class Terms:
    """The weighted terms of the sections `loss`, `noise_loss`, `content_loss` and `adversarial`.

    Args:
        config: a recipe's, bound.

    Raises:
        InputError: there is no term at all.
    """

    def __init__(self, config: Mapping[str, Any]):
        self._terms: dict[str, dict[str, tuple[float, Callable[..., Tensor], dict[str, Any]]]] = {}
        for section, collection in LOSS_SECTIONS.items():
            self._terms[section] = {}
            for name, options in config[section].items():
                own = {key: value for key, value in options.items() if key != "weight"}
                function = pick(collection.table, name, section)
                self._terms[section][name] = (options["weight"], function, own)
        self._adversarial = Adversarial(**config["adversarial"])
        if not any(self._terms.values()) and not self.judged:
            raise InputError("No loss term is left.", where="loss", expected=f"one of {', '.join(LOSSES)}")

    @property
    def distils(self) -> bool:
        """Whether a teacher is needed."""
        return "distillation" in self._terms["loss"]

    @property
    def judged(self) -> bool:
        """Whether a critic is needed."""
        return self._adversarial.loss != "none"

    def restored(
        self, made: Separated, noisy: Tensor, clean: Tensor, taught: Tensor | None
    ) -> dict[str, Tensor]:
        """Every weighted term but the critic's, as "image/l1".

        Args:
            made: what the network gives.
            noisy, clean: (B, 1, H, W).
            taught: the teacher's image; None without one.
        """
        places = {"loss": ("image", made.image, clean), "noise_loss": ("noise", made.noise, noisy - clean),
                  "content_loss": ("content", made.content, clean)}  # fmt: skip
        found = {}
        for section, (place, output, target) in places.items():
            for name, (weight, function, options) in self._terms[section].items():
                meant = taught if name == "distillation" else target
                found[f"{place}/{name}"] = weight * function(output, meant, **options)
        return found

    def deceived(self, scores: Tensor) -> dict[str, Tensor]:
        """The generator's weighted adversarial term, of the critic's scores of its images."""
        term = self._adversarial.weight * self._criterion(scores, real=True)
        return {f"adversarial/{self._adversarial.loss}": term}

    def judgement(self, real: Tensor, made: Tensor) -> Tensor:
        """The critic's own loss, of its scores of true and of made images."""
        return (self._criterion(real, real=True) + self._criterion(made, real=False)) / 2

    @property
    def _criterion(self) -> Callable[..., Tensor]:
        return restoration.gan if self._adversarial.loss == "gan" else restoration.lsgan
