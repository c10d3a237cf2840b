"""RED-CNN: five convolutions that shrink the image, five transposed ones that restore it, three residuals.

Source: Chen et al., "Low-Dose CT With a Residual Encoder-Decoder Convolutional Neural Network", IEEE TMI 36
(12), 2017, section II; numerically equal to the copy in the diary's code (github.com/imabackstabber/CT_DIY),
with and without selective kernels.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from annotated_types import Ge
from torch import Tensor, nn

from anban.recipe.schema import Count
from anban.tasks.denoise.models import releases
from anban.tasks.denoise.models.layers import check_smallest

Selection = Literal["kernels", "published"]


class SelectiveKernel(nn.Module):
    """Convolutions of 3, 5 and 7 pixels, weighed per image and channel: (B, width, H, W) -> the same.

    Source: Li et al., "Selective kernel networks", CVPR 2019, section 3.1.

    Args:
        width: channels.
        hidden: channels that the weights follow from.
        selection: the weights of the three kernels sum to 1 in each channel ("kernels"); or, as "published",
            all three have the same weights, which sum to 1/3 over the channels, so that nothing is selected.
    """

    def __init__(self, width: int, hidden: int, selection: Selection = "kernels"):
        super().__init__()
        self.selection = selection
        self.convs = nn.ModuleList(nn.Conv2d(width, width, size, padding=size // 2) for size in (3, 5, 7))
        self.squeeze = nn.Linear(width, hidden)
        self.excite = nn.Linear(hidden, width if selection == "published" else 3 * width)

    def forward(self, x: Tensor) -> Tensor:
        branches = torch.stack([F.leaky_relu(conv(x)) for conv in self.convs], dim=1)
        scores = self.excite(F.relu(self.squeeze(branches.sum(dim=1).mean(dim=(2, 3)))))
        if self.selection == "published":
            weights = scores.softmax(dim=1).unsqueeze(1) / 3
        else:
            weights = scores.reshape(len(x), 3, -1).softmax(dim=1)
        selected: Tensor = (branches * weights[..., None, None]).sum(dim=1)
        return selected


class REDCNN(nn.Module):
    """RED-CNN: (B, channels, H, W) -> the denoised images of the same shape, sides of at least 21 pixels.

    Args:
        channels: of an image.
        width: of all layers within.
        selective: hidden channels of a selective kernel between encoder and decoder; 0 leaves it out
            (published: 0; the diary's "sk" noise branch: 40).
        selection: of the selective kernel, see `SelectiveKernel`.
        final_activation: behind the last residual; "relu" as published, which takes images without negative
            values.

    Raises:
        InputError: in `forward`, a side is below 21.
    """

    multiple_of = 1

    def __init__(
        self,
        channels: Count = 1,
        width: Count = 96,
        selective: Annotated[int, Ge(0)] = 0,
        selection: Selection = "kernels",
        final_activation: Literal["relu", "none"] = "relu",
    ):
        super().__init__()
        widths = [channels, *[width] * 5]
        self.encoder = nn.ModuleList(nn.Conv2d(inputs, width, kernel_size=5) for inputs in widths[:-1])
        self.select = SelectiveKernel(width, selective, selection) if selective else nn.Identity()
        self.decoder = nn.ModuleList(
            nn.ConvTranspose2d(width, outputs, kernel_size=5) for outputs in reversed(widths[:-1])
        )
        self.final_activation = nn.ReLU() if final_activation == "relu" else nn.Identity()

    def forward(self, image: Tensor) -> Tensor:
        """The denoised images (B, channels, H, W)."""
        check_smallest(self, image, 21)
        x, residuals = image, []
        for i, conv in enumerate(self.encoder):
            if i % 2 == 0:  # the image, and what the second and the fourth convolution gave
                residuals.append(x)
            x = F.relu(conv(x))
        x = self.select(x)
        for i, conv in enumerate(self.decoder):
            x = conv(x)
            if i % 2 == 0:
                x = x + residuals.pop()
            x = F.relu(x) if residuals else self.final_activation(x)
        return x

    def from_official(self, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Rename the parameters of CT_DIY's `RED_CNN` or `RED_SK_Block`."""
        return releases.red_cnn(state_dict)
