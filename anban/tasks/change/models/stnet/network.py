"""STNet as a whole.

Source: notes 000 and 001 of the project's notebooks; where they leave something open, docs/stnet.md tells the reading.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import torch.nn.functional as F
from annotated_types import Ge, Len
from torch import Tensor, nn

from anban.errors import InputError
from anban.recipe.schema import Count
from anban.ssm import SS2D
from anban.ssm.vmamba.layers import Mlp
from anban.tasks.change.models.stnet.decoder import DecoderLevel, takes_difference
from anban.tasks.change.models.stnet.encoder import SISS
from anban.tasks.change.models.stnet.fusion import DifferenceFusion
from anban.tasks.change.models.stnet.layers import Style
from anban.tasks.change.models.stnet.settings import AFF, VSS, Classifier, Decoder, Encoder, Enhancement, Norm


class STNet(nn.Module):
    """A light, U-shaped, bitemporal network: (batch, in_chans, H, W) twice -> scores of change (batch, classes, H, W).

    The two dates separate and integrate level by level (SISS, at 1/4 to 1/32 of the size), the decoder goes up with a trunk of
    VSS blocks, derivative operators supply what is local (EDSS), and AFF fuses both. Under deep supervision, in training, a
    list: the scores, then those of each deeper level at its own size. The defaults are the complete model, code 0-0-0.

    Args:
        dims: channels of the first level, doubled from level to level.
        depths: blocks of every level of the encoder, in each date's way.
        in_chans: bands of an image.
        classes: 2 (scores of no change and change, for cross entropy) or 1 (the logit of change).
        norm: every norm outside the scan, "bn" or "ln".
        bias: "where-no-bn" leaves the bias of a convolution out where batch norm follows; "always" keeps it.
        reduction: how channels are lowered: "direct", or to half of what is wanted and then doubled ("quarter").
        vss, encoder, decoder, enhancement, aff, classifier: see the classes of those names.

    Raises:
        InputError: the differences of all levels are to be fused, and there are none.
    """

    multiple_of = 32
    backbone: ClassVar[tuple[str, ...]] = ("encoder",)

    def __init__(
        self,
        dims: Count = 64,
        depths: Annotated[list[Annotated[int, Ge(0)]], Len(4, 4)] = [2, 2, 10, 2],  # noqa: B006 - never changed
        in_chans: Count = 3,
        classes: Literal[1, 2] = 2,
        norm: Norm = "bn",
        bias: Literal["where-no-bn", "always"] = "where-no-bn",
        reduction: Literal["direct", "quarter"] = "quarter",
        vss: VSS = VSS(),
        encoder: Encoder = Encoder(),
        decoder: Decoder = Decoder(),
        enhancement: Enhancement = Enhancement(),
        aff: AFF = AFF(),
        classifier: Classifier = Classifier(),
    ):
        super().__init__()
        style = Style(norm, bias, reduction, vss)
        widths = [dims * 2**level for level in range(len(depths))]
        if decoder.difference_fusion and encoder.difference == "none":
            raise InputError(
                "The differences of all levels are to be fused, and the encoder takes none.",
                where="decoder.difference_fusion with encoder.difference",
                do='set encoder.difference to "depth-wise" or "ordinary"',
            )
        deepest = len(widths) - 1
        wanted = [takes_difference(level, deepest, decoder, enhancement) for level in range(len(widths))]
        self.encoder = SISS(in_chans, widths, list(depths), wanted, encoder, style)
        own = widths if decoder.widths == "level-by-level" else [dims] * len(widths)
        self.decoder = nn.ModuleList(
            DecoderLevel(
                level,
                widths[level],
                own[level],
                below,
                encoded.difference is not None,
                in_chans,
                decoder,
                enhancement,
                aff,
                style,
            )
            for level, (encoded, below) in enumerate(zip(self.encoder.levels, [*own[1:], None], strict=True))
        )
        self.difference_fusion = DifferenceFusion(widths, style, aff) if decoder.difference_fusion else None
        self.extra_level = style.convolution(dims, dims, 3) if decoder.upsampling == "extra-level" else None
        strengthening = [style.convolution(dims, dims, 3)] if classifier.strengthened else []
        margin = classifier.kernel // 2
        self.classifier = nn.Sequential(
            *strengthening, nn.Conv2d(dims, classes, classifier.kernel, padding=margin)
        )
        self.supervised = nn.ModuleList(
            nn.Conv2d(width, classes, 1) for width in (own[1:] if decoder.deep_supervision else [])
        )
        for part in self.modules():
            if isinstance(part, SS2D | Mlp):
                _start(part)

    def forward(self, a: Tensor, b: Tensor) -> Tensor | list[Tensor]:
        """Scores (batch, classes, H, W) of the earlier and the later image; a list under deep supervision in training."""
        features = list(self.encoder(a, b))
        below, outputs = None, []
        for level, (date_a, date_b, difference) in reversed(list(zip(self.decoder, features, strict=True))):
            below = level(date_a, date_b, difference, below, (a, b))
            outputs.append(below)
        assert below is not None
        if self.difference_fusion is not None:
            below = below + self.difference_fusion([difference for _, _, difference in features])
        if self.extra_level is not None:
            below = self.extra_level(F.interpolate(below, scale_factor=2, mode="bilinear"))
        scores = F.interpolate(self.classifier(below), a.shape[-2:], mode="bilinear")
        if not self.training or not self.supervised:
            return scores
        deeper = outputs[-2::-1]  # from the second level to the deepest
        return [scores, *(head(x) for head, x in zip(self.supervised, deeper, strict=True))]


def _start(part: nn.Module) -> None:
    """Linear layers as VMamba starts them: weights from a normal of 0.02, cut off at 2, biases 0 (note 001, _init_weights)."""
    for layer in part.children():
        if isinstance(layer, nn.Linear):
            nn.init.trunc_normal_(layer.weight, std=0.02)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
