"""From a map to the scores of the classes at the size of the image, in the steps of the settings.

Sources: Yu et al., "BiSeNet", ECCV 2018; the head with dropout is that of FCNs (Long et al., CVPR 2015), the one of two
convolutions that of PSPNet (Zhao et al., CVPR 2017).
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from anban.errors import InputError
from anban.tasks.segment.models.bisenet.settings import Auxiliary, Head
from anban.tasks.segment.models.common import ConvNormAct, Enlarge, Style


class ClassHead(nn.Module):
    """(B, `inputs`, h, w) at 1 / `stride` of the image -> scores (B, `classes`, H, W).

    Raises:
        InputError: the steps end with another number of channels than there are classes.
    """

    def __init__(
        self,
        inputs: int,
        stride: int,
        classes: int,
        settings: Head | Auxiliary,
        enlarging: Literal["nearest", "bilinear", "deconvolution", "deconvolutions"],
        align_corners: bool,
        style: Style,
    ):
        super().__init__()
        self.steps, self.layers = settings.steps, nn.ModuleList()
        channels = inputs
        for step in settings.steps:
            if step == "dropout":
                self.layers.append(nn.Dropout(settings.dropout))
            elif step == "enlarge":
                self.layers.append(Enlarge(enlarging, channels, stride, align_corners))
            elif step == "to-8":
                self.layers.append(Enlarge("deconvolution", channels, max(stride // 8, 1)))
                stride = min(stride, 8)
            elif step.endswith("relu"):
                self.layers.append(ConvNormAct(channels, settings.width, int(step[0]), style=style))
                channels = settings.width
            else:
                kernel = int(step[0])
                self.layers.append(
                    nn.Conv2d(channels, classes, kernel, padding=kernel // 2, bias=settings.bias)
                )
                channels = classes
        if channels != classes:
            raise InputError(
                f"After the steps {', '.join(settings.steps)} there are {channels} channels for {classes} classes.",
                where="head.steps" if isinstance(settings, Head) else "auxiliary.steps",
                do='add a plain convolution, "1x1" or "3x3"',
            )

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """Scores of the map `x` for an image of (H, W) = `size`."""
        for step, layer in zip(self.steps, self.layers, strict=True):
            if step == "enlarge":
                x = layer(x, size)
            elif step == "to-8":
                x = layer(x, (-(-size[0] // 8), -(-size[1] // 8)))
            else:
                x = layer(x)
        return x
