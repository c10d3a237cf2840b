"""What parameters of state spaces have in common."""

from __future__ import annotations

from torch import Tensor, nn


def undecayed(values: Tensor) -> nn.Parameter:
    """A parameter that weight decay leaves alone: rates (A), skips (D), biases of steps, positions.

    Decay would pull A towards -1 and steps towards softplus(0), which is no rest position for either. Optimisers that know Mamba's
    mark `_no_weight_decay` honour it; anban's do.
    """
    parameter = nn.Parameter(values)
    parameter._no_weight_decay = True  # type: ignore[attr-defined]
    return parameter
