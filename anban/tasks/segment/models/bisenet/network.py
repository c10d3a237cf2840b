"""BiSeNetV1 as a whole, numerically equal to the release at every age (github.com/CoinCheung/BiSeNet).

Source: Yu et al., "BiSeNet: bilateral segmentation network for real-time semantic segmentation", ECCV 2018; note 002.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor, nn

from anban.errors import InputError
from anban.official import rename
from anban.recipe.schema import Count
from anban.tasks.segment.models.bisenet import paths
from anban.tasks.segment.models.bisenet.backbone import build_backbone
from anban.tasks.segment.models.bisenet.head import ClassHead
from anban.tasks.segment.models.bisenet.settings import (
    ARM,
    Auxiliary,
    Backbone,
    ContextPath,
    Fusion,
    GlobalContext,
    Head,
    Init,
    SpatialPath,
    Upsampling,
)
from anban.tasks.segment.models.common import Norm, Output, SideOutputs, Style, answer, size_of


class BiSeNetV1(nn.Module):
    """BiSeNetV1: images (B, 3, H, W) -> scores of the classes (B, K, H, W).

    A spatial path keeps detail, a context path sees much, both are fused at 1/8 of the image. The defaults are the release's
    current network; `AGES` in `settings` has the arguments of its other ages, the recipes those of the diary's variants. In
    training a list: the scores, then those of the auxiliary heads. Sides of any length are taken.

    Args:
        classes: K.
        backbone, spatial_path, arm, global_context, context_path, fusion, head, auxiliary, upsampling: see the classes of
            those names in `settings`.
        norm: every norm with its activation, the backbone's too: "bn" and ReLU; "inplace-abn", what InPlace-ABN computes (batch
            norm with the weight |w| + eps, leaky ReLU 0.01); or "gn" (up to 32 groups) and ReLU.
        init: of the layers outside the backbone.
        side_outputs: when the scores of the auxiliary heads are returned too.
        output: "logits", or "classes": the number of the best class (B, H, W), int32.

    Raises:
        InputError: parts do not fit: maps of different channels are to be added, a head is to look at what the network does
            not have, or ends with another number of channels than there are classes.
    """

    multiple_of = 32
    backbone: ClassVar[tuple[str, ...]] = ("features",)

    def __init__(
        self,
        classes: Count = 19,
        backbone: Backbone = Backbone(),
        spatial_path: SpatialPath = SpatialPath(),
        arm: ARM = ARM(),
        global_context: GlobalContext = GlobalContext(),
        context_path: ContextPath = ContextPath(),
        fusion: Fusion = Fusion(),
        head: Head = Head(),
        auxiliary: Auxiliary = Auxiliary(),
        upsampling: Upsampling = Upsampling(),
        norm: Norm = "bn",
        init: Init = "kaiming",
        side_outputs: SideOutputs = "training",
        output: Output = "logits",
    ):
        super().__init__()
        style = Style(norm)
        self.side_outputs, self.output = side_outputs, output
        self.features = build_backbone(backbone, style)
        widths = self.features.widths
        self.context_path = paths.ContextBranch(widths, arm, global_context, context_path, upsampling, style)
        channels, stride = self.context_path.channels, self.context_path.stride

        self.detail = spatial_path.source
        if self.detail != "none":
            if stride != 8:
                raise InputError(
                    f"The spatial path ends at 1/8 of the image, the context path at 1/{stride}.",
                    where="context_path.stride",
                    expected='8, or the spatial path "none"',
                )
            spatial = widths[8]
            if self.detail == "convolutions":
                self.spatial_path = paths.spatial_path(spatial_path, style)
                spatial = spatial_path.out_channels or spatial_path.channels[-1]
            self.fusion = paths.FeatureFusion(spatial, channels, fusion, classes, style)
            channels, stride = self.fusion.channels, stride * self.fusion.stride

        def head_on(inputs: int, stride: int) -> ClassHead:
            return ClassHead(
                inputs, stride, classes, head, upsampling.output, upsampling.align_corners, style
            )

        self.head = head_on(channels, stride)
        self.also = nn.ModuleDict({name: head_on(widths[int(name[4:])], int(name[4:])) for name in head.also})
        maps = {f"feat{s}": (width, s) for s, width in widths.items()} | self.context_path.maps
        for source in auxiliary.sources:
            if source not in maps:
                raise InputError(
                    f"There is no {source} in this network.",
                    where="auxiliary.sources",
                    expected=f"some of {', '.join(maps)}",
                )
        self.sources = auxiliary.sources
        self.auxiliary = nn.ModuleList(
            ClassHead(
                *maps[source], classes, auxiliary, upsampling.auxiliary, upsampling.align_corners, style
            )
            for source in auxiliary.sources
        )
        _start(self, init)

    def forward(self, image: Tensor) -> Tensor | list[Tensor]:
        """Scores (B, K, H, W) of the images (B, 3, H, W); in training a list with those of the auxiliary heads."""
        size = size_of(image)
        features = self.features(image)
        fused, maps = self.context_path(features)
        if self.detail != "none":
            detail = self.spatial_path(image) if self.detail == "convolutions" else features[8]
            fused = self.fusion(detail, fused)
        maps |= {f"feat{stride}": feature for stride, feature in features.items()}

        scores = self.head(fused, size)
        for name, head in self.also.items():
            scores = scores + head(maps[name], size)
        return answer(
            self,
            scores,
            lambda: [head(maps[name], size) for name, head in zip(self.sources, self.auxiliary, strict=True)],
            self.output,
            self.side_outputs,
        )

    def from_official(self, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Rename the release's parameters, of any age; the diary's last commit has parts that it never calls."""
        last = {
            "head": _plain(self.head),
            **{f"auxiliary.{i}": _plain(h) for i, h in enumerate(self.auxiliary)},
        }
        renamed = rename(
            state_dict,
            [
                (r"^cp\.resnet\.", "features."),
                (r"^cp\.arm(\d+)\.conv_atten\.", r"context_path.arm.\1.attention.layers.conv."),
                (r"^cp\.arm(\d+)\.bn_atten\.", r"context_path.arm.\1.attention.layers.norm."),
                (r"^cp\.arm(\d+)\.conv\.(conv|bn)\.", r"context_path.arm.\1.conv.\2."),
                (r"^cp\.arm(\d+)\.conv\.weight", r"context_path.arm.\1.attention.layers.conv.weight"),
                (r"^cp\.arm(\d+)\.bn\.", r"context_path.arm.\1.attention.layers.norm."),
                (r"^cp\.conv_avg\.", "context_path.global_context.convert."),
                (r"^cp\.bn_avg\.", "context_path.global_context.convert.bn."),
                (r"^cp\.conv_cat\.", "context_path.joining.outer.16."),
                (r"^cp\.conv_head32\.", "context_path.joining.refine.16."),
                (r"^cp\.conv_head16\.", "context_path.out."),
                (r"^sp\.conv(\d)\.", lambda match: f"spatial_path.{int(match[1]) - 1}."),
                (r"^sp\.conv_out\.", "spatial_path.3."),
                (r"^ffm\.convblk\.", "fusion.conv."),
                (r"^ffm\.(conv|bn)\.", r"fusion.attention.layers.\1."),
                (r"^ffm\.conv1\.", "fusion.attention.layers.squeeze."),
                (r"^ffm\.conv2\.", "fusion.attention.layers.excite."),
                (r"^conv_out\.", "head."),
                (r"^conv_out16\.", "auxiliary.0."),
                (r"^conv_out32\.", "auxiliary.1."),
                (r"^(head|auxiliary\.\d)\.conv\.", r"\1.layers.0."),
                (
                    r"^(head|auxiliary\.\d)\.conv_out\.",
                    lambda match: f"{match[1]}.layers.{last.get(match[1], 1)}.",
                ),
                (r"^(?!features)(.*)\.bn\.", r"\1.norm."),
            ],
        )
        if "cp.bn_avg.weight" in state_dict:
            never_called = ("context_path.arm.", "context_path.global_context.")
            own = self.state_dict()
            renamed = {k: t for k, t in renamed.items() if k in own or not k.startswith(never_called)}
        return renamed


def _plain(head: nn.Module) -> int:
    """Where a head's first plain convolution stands among its layers."""
    layers = head.get_submodule("layers").children()
    return next((place for place, layer in enumerate(layers) if isinstance(layer, nn.Conv2d)), 0)


def _start(network: BiSeNetV1, init: Init) -> None:
    """Start the layers outside the backbone: kaiming_normal with the gain of a linear layer (a = 1), biases 0."""
    kinds = {"pytorch": (), "kaiming": (nn.Conv2d,), "kaiming-all": (nn.Conv2d, nn.ConvTranspose2d)}[init]
    for name, layer in network.named_modules():
        if isinstance(layer, kinds) and not name.startswith(network.backbone):
            nn.init.kaiming_normal_(layer.weight, a=1)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
