"""The critic of adversarial training: it judges patches, not the image as a whole.

Source: Isola et al., "Image-to-image translation with conditional adversarial networks", CVPR 2017, section
3.2.2; numerically equal to CNCL's `Discriminator` (github.com/gengmufeng/CNCL-denoising) and the diary's
`PatchLSGAN` (github.com/imabackstabber/CT_DIY).
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise

import torch
from torch import Tensor, nn

from anban.official import rename
from anban.recipe.schema import Count
from anban.tasks.denoise.models.layers import check_smallest, initialise
from anban.tasks.denoise.models.settings import Initialisation


class PatchDiscriminator(nn.Module):
    """Images of the same place, joined along the channels -> a raw score (B, 1, H // 16, W // 16) per patch,
    high for real.

    Both losses of `anban.losses.restoration`, `gan` and `lsgan`, take raw scores.

    Args:
        in_channels: of all images together: content, noise and noisy image are 3.
        width: of the first layer; each of the next three has twice as many channels.
        init: see `layers.initialise`.

    Raises:
        InputError: in `forward`, a side is below 32.
    """

    multiple_of = 1

    def __init__(self, in_channels: Count = 3, width: Count = 64, init: Initialisation = "xavier"):
        super().__init__()
        widths = (in_channels, width, 2 * width, 4 * width, 8 * width)
        self.layers = nn.Sequential()
        for layer, (inputs, outputs) in enumerate(pairwise(widths)):
            self.layers.append(nn.Conv2d(inputs, outputs, kernel_size=4, stride=2, padding=1))
            if layer > 0:
                self.layers.append(nn.InstanceNorm2d(outputs))
            self.layers.append(nn.LeakyReLU(0.2))
        # One row and column more at the top and the left, so that there are as many scores as patches.
        self.layers.append(nn.ZeroPad2d((1, 0, 1, 0)))
        self.layers.append(nn.Conv2d(8 * width, 1, kernel_size=4, padding=1, bias=False))
        initialise(self, init)

    def forward(self, *images: Tensor) -> Tensor:
        """Scores (B, 1, H // 16, W // 16) of images (B, c, H, W), always in the same order."""
        check_smallest(self, images[0], 32)
        scores: Tensor = self.layers(torch.cat(images, dim=1))
        return scores

    def from_official(self, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Rename the releases' parameters."""
        return rename(state_dict, [(r"^model\.", "layers.")])
