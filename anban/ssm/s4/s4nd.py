"""S4ND: a state space along every axis of an image or video; its kernel is the outer product of one-dimensional ones.

    K[h, w] = K0[h] K1[w]

One 1-D kernel as long as the axis for each axis makes a global kernel of the whole image: L1 + L2 numbers stand for L1 L2. As
they are continuous functions, an image at another resolution takes the same kernels at another `rate`.

Source: Nguyen et al., "S4ND: Modeling images and videos as multidimensional signals using state spaces", 2022 (arXiv
2210.06583), section 3; src/models/sequence/modules/s4nd.py of github.com/state-spaces/s4.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from anban.errors import InputError
from anban.ssm.s4.kernels import restore
from anban.ssm.s4.layers import activation_layer, dropout_layer, linear_layer, make_kernel
from anban.ssm.s4.systems import kernel_spectrum


class S4ND(nn.Module):
    """S4ND layer: (B, H, L1, L2, ...) -> (B, channels * H, L1, L2, ...), or (B, H, ...) with an output layer.

    Args:
        d_model: features H.
        d_state: size of the state along each axis.
        l_max: longest kernel, one number or one per axis; None: as long as the input's axis.
        dim: number of axes; given by `l_max` if that is a sequence.
        out_channels: mix the features: `out_channels` outputs, each the sum over all features with kernels of its own, and no
            skip. None: depth-wise, every feature for itself.
        channels: outputs per feature (per output, if features are mixed).
        bidirectional: each axis has a kernel in both directions, so that a pixel sees the whole image; otherwise it sees what
            is above and to the left. A backward kernel starts at the next pixel.
        linear: the convolution and its skip alone; False adds activation, dropout and a linear layer over the features.
        activation, dropout, tie_dropout, final_act: of that part; tied: whole images are dropped.
        transposed: True for (B, H, L1, ...), False for (B, L1, ..., H).
        trank: the kernel is the mean of that many outer products.
        kernel: "diag" (S4D), or "dplr" (S4, the default of the release).
        kernel_args: arguments of `SSMKernelDPLR` or `SSMKernelDiag`, the same for all axes.

    Raises:
        InputError: arguments do not go together.
    """

    def __init__(
        self,
        d_model: int,
        d_state: int = 64,
        l_max: int | Sequence[int | None] | None = None,
        dim: int = 2,
        out_channels: int | None = None,
        channels: int = 1,
        *,
        bidirectional: bool = True,
        linear: bool = True,
        activation: str | None = "gelu",
        dropout: float = 0.0,
        tie_dropout: bool = False,
        final_act: str | None = None,
        transposed: bool = True,
        trank: int = 1,
        kernel: str = "diag",
        **kernel_args: Any,
    ):
        super().__init__()
        if out_channels is not None and not linear:
            raise InputError(
                "features are mixed both by `out_channels` and by an output layer", expected="one of them"
            )
        self.l_max = [l_max] * dim if l_max is None or isinstance(l_max, int) else list(l_max)
        self.out_channels, self.trank = out_channels, trank
        self.bidirectional, self.transposed = bidirectional, transposed
        self.D = None if out_channels else nn.Parameter(torch.randn(channels, d_model))
        kernels = channels * (out_channels or 1) * trank * (2 if bidirectional else 1)
        self.kernel = nn.ModuleList(
            make_kernel(kernel, d_model=d_model, d_state=d_state, channels=kernels, **kernel_args)
            for _ in self.l_max
        )
        self.activation = nn.Identity() if linear else activation_layer(activation, dim=1)
        self.dropout = nn.Identity() if linear else dropout_layer(dropout, tied=tie_dropout)
        self.output_linear = None if linear else linear_layer(d_model * channels, d_model, final_act)

    def forward(self, u: Tensor, rate: float = 1.0) -> Tensor:
        """(B, H, L1, ...), or (B, L1, ..., H) if not `transposed`; `rate`: see `SSMKernel.system`."""
        if not self.transposed:
            u = u.movedim(-1, 1)
        if u.ndim != len(self.l_max) + 2:
            raise InputError(
                f"an input of {u.ndim} dimensions", expected=f"batch, features and {len(self.l_max)} axes"
            )
        size = u.shape[2:]
        lengths = self.lengths(size, rate)
        padded = [axis + length for axis, length in zip(size, lengths, strict=True)]
        wide = u if u.dtype in {torch.float32, torch.float64} else u.float()
        u_f = torch.fft.rfftn(wide, s=padded, dim=tuple(range(2, u.ndim)))
        k_f = self._spectrum(lengths, padded, rate)
        if self.out_channels is None:
            y_f = u_f[:, None] * k_f
        else:
            # Channels (o, c) of the kernels: output o is a sum over the features, kept in the order (c, o).
            y_f = torch.einsum(
                "bh...,och...->bco...", u_f, k_f.reshape(self.out_channels, -1, *k_f.shape[1:])
            )
        y: Tensor = torch.fft.irfftn(y_f, s=padded, dim=tuple(range(3, y_f.ndim)))
        corner: tuple[Any, ...] = (..., *map(slice, size))
        y = y[corner]
        if self.D is not None:
            y = y + u[:, None] * self.D[(..., *[None] * len(size))]
        y = self.dropout(self.activation(y.flatten(1, 2).to(u.dtype)))
        y = y.movedim(1, -1)
        if self.output_linear is not None:
            y = self.output_linear(y)
        return y.movedim(-1, 1) if self.transposed else y

    def kernel_nd(self, size: Sequence[int]) -> Tensor:
        """The kernel on the grid, the outer product itself: (channels, H, L1, ...).

        Of a bidirectional layer each axis has 2 L values: lags -L .. L-1, the present at L.
        """
        axes = []
        for kernel, length in zip(self.kernel, self.lengths(size), strict=True):
            k = kernel(length)
            if self.bidirectional:
                forward, backward = k.chunk(2)
                k = torch.cat([backward.flip(-1), forward], dim=-1)
            axes.append(k)
        return self._outer(axes)

    def lengths(self, size: Sequence[int], rate: float = 1.0) -> list[int]:
        """The length of the kernel of every axis, for an input of that size."""
        return [
            axis if longest is None else min(axis, round(longest / rate))
            for axis, longest in zip(size, self.l_max, strict=True)
        ]

    def from_official(self, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Turn what the release keeps in DPLR kernels back, see `SSMKernelDPLR`; drop its D where it is not used."""
        state = restore(self, state_dict)
        if self.D is None:
            state.pop("D", None)
        return state

    def _spectrum(self, lengths: Sequence[int], padded: Sequence[int], rate: float) -> Tensor:
        last = len(lengths) - 1
        return self._outer(
            [
                kernel_spectrum(kernel(length, rate), n, two_sided=self.bidirectional, half=i == last)
                for i, (kernel, length, n) in enumerate(zip(self.kernel, lengths, padded, strict=True))
            ]
        )

    def _outer(self, axes: Sequence[Tensor]) -> Tensor:
        """One tensor (trank * C, H, l) per axis -> the mean over trank of their outer products, (C, H, l1, l2, ...)."""
        product = axes[0]
        for axis in axes[1:]:
            product = product[..., None] * axis[(slice(None), slice(None), *[None] * (product.ndim - 2))]
        return product.reshape(self.trank, -1, *product.shape[1:]).mean(0)
