r"""The losses of a denoising network: terms on its image, its noise and its content, and what a critic thinks of them.

Notation: of a noisy image $y$ whose true image is $x$ a network makes the denoised image $\hat x$, the noise $\hat n$ and
the content $\hat c$, all in its own units; $t$ is what a teacher makes of $y$, and $D$ a critic, which sees the three
images together.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, Literal

from annotated_types import Ge
from torch import Tensor, nn

from anban.errors import InputError
from anban.formulas import Term
from anban.losses import restoration
from anban.losses.restoration import FeatureEncoder
from anban.recipe.schema import Collection, NonNegative, pick
from anban.tasks.denoise.models.twin import Separated
from anban.tasks.supervision import TERM

Encoder = Literal["vgg16", "vgg19", "identity"]
FEW_POSITIONS = 4
"""Features of so few positions along a side are told of."""

_PIXELWISE = {name: f"anban.losses.restoration:{name}" for name in ("l1", "l2", "charbonnier")}
_TEXTURE = {"texture": "anban.tasks.denoise.loss:texture"}
_PERCEPTUAL = {"perceptual": "anban.tasks.denoise.loss:perceptual"}
_DISTILLATION = {"distillation": "anban.losses.restoration:distillation"}
_ADVERSARIAL = {name: f"anban.losses.restoration:{name}" for name in ("gan", "lsgan")}

LOSSES: dict[str, str] = {**_PIXELWISE, **_TEXTURE, **_PERCEPTUAL, **_DISTILLATION, **_ADVERSARIAL}
LOSS_SECTIONS: dict[str, Collection] = {
    "loss": Collection({**_PIXELWISE, **_TEXTURE, **_PERCEPTUAL, **_DISTILLATION}, common=TERM),
    "noise_loss": Collection({**_PIXELWISE, **_TEXTURE}, common=TERM),
    "content_loss": Collection({**_PIXELWISE, **_TEXTURE, **_PERCEPTUAL}, common=TERM),
}
PLACES = {
    "loss": ("image", r"\hat x, x"),
    "noise_loss": ("noise", r"\hat n, y - x"),
    "content_loss": ("content", r"\hat c, x"),
}
"""Section -> what its terms are of, in the log and in formulas."""


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
    positions that the encoder gives; with by_batch also divided by $B$.

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
            raise InputError("No loss term is left.", where="loss",
                             expected=f"one of {', '.join(LOSS_SECTIONS['loss'].table)}")  # fmt: skip

    @property
    def distils(self) -> bool:
        """Whether a teacher is needed."""
        return "distillation" in self._terms["loss"]

    @property
    def judged(self) -> bool:
        """Whether a critic is needed."""
        return self._adversarial.loss != "none"

    def told(self, patch: int | None) -> list[str]:
        """What the terms cannot do with training patches of this side, as sentences."""
        texts = []
        for section, terms in self._terms.items():
            for name, (_, _, options) in terms.items():
                if patch is None or options.get("encoder", "identity") == "identity":
                    continue
                side = patch // FeatureEncoder.vgg_stride(options["encoder"], options["layers"])
                if side <= FEW_POSITIONS:
                    texts.append(
                        f"{section}.{name} sees a patch of {patch}x{patch} pixels as {side}x{side} positions behind "
                        f"{options['layers']} layers of {options['encoder']}, which tell little of its texture: raise "
                        f"data.patch, or lower {section}.{name}.layers"
                    )
        return texts

    def restored(
        self, made: Separated, noisy: Tensor, clean: Tensor, taught: Tensor | None
    ) -> dict[str, Tensor]:
        """Every weighted term but the critic's, as "image/l1".

        Args:
            made: what the network gives.
            noisy, clean: (B, 1, H, W).
            taught: the teacher's image; None without one.
        """
        compared = {"loss": (made.image, clean), "noise_loss": (made.noise, noisy - clean),
                    "content_loss": (made.content, clean)}  # fmt: skip
        found = {}
        for section, (output, target) in compared.items():
            for name, (weight, function, options) in self._terms[section].items():
                meant = taught if name == "distillation" else target
                found[f"{PLACES[section][0]}/{name}"] = weight * function(output, meant, **options)
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
        function: Callable[..., Tensor] = pick(_ADVERSARIAL, self._adversarial.loss, "adversarial.loss")
        return function


def terms_of(config: Mapping[str, Any]) -> list[Term]:
    """What a recipe's network is trained with, in the order of `Terms`; its critic's own loss is in the formula."""
    found = [
        Term(name, r"\hat x, t" if name == "distillation" else PLACES[section][1], options)
        for section in LOSS_SECTIONS
        for name, options in config[section].items()
    ]
    critic = Adversarial(**config["adversarial"])
    if critic.loss != "none":
        turns = {"generator_steps": config["alternation"]["generator_steps"]}
        found.append(Term(critic.loss, r"D(\hat x, \hat n, y)", {"weight": critic.weight, **turns}))
    return found
