"""Optimisers with the parameter groups that dense-prediction recipes ask for.

Each function's keyword arguments are the schema of the recipe section `optimizer`. All of them take:

    lr                   rate of the parameters that are not new
    weight_decay         of the parameters that are decayed
    new_layer_rate       how many times the rate new layers get
    new_layers           parameter prefixes of the new layers; null: all outside the network's backbone
    decay_norm_and_bias  whether normalisation weights and biases are decayed
    processes            what the number of processes does to all rates: nothing ("same"), "multiply" (the linear scaling
                         rule for a batch that grows with them) or "divide"
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import nn

from anban.engine import parallel
from anban.errors import InputError
from anban.recipe.schema import NonNegative, Positive, Share

Groups = list[dict[str, Any]]
Processes = Literal["same", "multiply", "divide"]


def parameter_groups(
    module: nn.Module,
    lr: float,
    weight_decay: float,
    new_layer_rate: float,
    decay_norm_and_bias: bool,
    new_layers: list[str] | None = None,
    processes: Processes = "same",
) -> Groups:
    """Up to four groups: (pretrained backbone or new layers) x (decayed or not).

    Args:
        lr: rate of the backbone; layers outside it ("new") get `new_layer_rate` times as much. A network names its
            backbone by the parameter prefixes in its attribute `backbone`; without one every layer has the rate `lr`.
        decay_norm_and_bias: False leaves normalisation weights and all biases (tensors of at most one dimension)
            without weight decay, and so parameters that carry `_no_weight_decay`, as state-space layers mark theirs.
        new_layers: the new layers by their parameter prefixes, in place of all that is not the backbone.
        processes: see the module's text.

    Raises:
        InputError: a prefix in `new_layers` that no parameter has.
    """
    backbone = tuple(getattr(module, "backbone", ()))
    named = tuple(new_layers or ())
    for prefix in named:
        if not any(name.startswith(prefix) for name, _ in module.named_parameters()):
            parts = dict.fromkeys(name.split(".")[0] for name, _ in module.named_parameters())
            raise InputError(f"No parameter begins with '{prefix}'.", where="optimizer.new_layers",
                             expected=f"parts of the network: {', '.join(parts)}")  # fmt: skip
    lr *= {"same": 1, "multiply": parallel.world(), "divide": 1 / parallel.world()}[processes]
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            if new_layers is None:
                new = bool(backbone) and not name.startswith(backbone)
            else:
                new = name.startswith(named)
            exempt = parameter.ndim < 2 or getattr(parameter, "_no_weight_decay", False)
            decayed = decay_norm_and_bias or not exempt
            groups.setdefault((new, decayed), []).append(parameter)
    return [
        {
            "params": parameters,
            "lr": lr * (new_layer_rate if new else 1.0),
            "weight_decay": weight_decay if decayed else 0.0,
        }
        for (new, decayed), parameters in sorted(groups.items(), key=lambda item: item[0])
    ]


def sgd(
    module: nn.Module,
    *,
    lr: Positive = 0.01,
    momentum: Share = 0.9,
    nesterov: bool = False,
    weight_decay: NonNegative = 0.0,
    new_layer_rate: Positive = 1.0,
    new_layers: list[str] | None = None,
    decay_norm_and_bias: bool = False,
    processes: Processes = "same",
) -> torch.optim.Optimizer:
    """Stochastic gradient descent with momentum."""
    groups = parameter_groups(
        module, lr, weight_decay, new_layer_rate, decay_norm_and_bias, new_layers, processes
    )
    return torch.optim.SGD(groups, lr=lr, momentum=momentum, nesterov=nesterov)


def adam(
    module: nn.Module,
    *,
    lr: Positive = 1e-3,
    betas: tuple[Share, Share] = (0.9, 0.999),
    eps: Positive = 1e-8,
    weight_decay: NonNegative = 0.0,
    new_layer_rate: Positive = 1.0,
    new_layers: list[str] | None = None,
    decay_norm_and_bias: bool = False,
    processes: Processes = "same",
) -> torch.optim.Optimizer:
    """Adam (Kingma and Ba, 2015); weight decay is added to the gradient."""
    groups = parameter_groups(
        module, lr, weight_decay, new_layer_rate, decay_norm_and_bias, new_layers, processes
    )
    return torch.optim.Adam(groups, lr=lr, betas=(betas[0], betas[1]), eps=eps)


def adamw(
    module: nn.Module,
    *,
    lr: Positive = 1e-3,
    betas: tuple[Share, Share] = (0.9, 0.999),
    eps: Positive = 1e-8,
    weight_decay: NonNegative = 1e-2,
    new_layer_rate: Positive = 1.0,
    new_layers: list[str] | None = None,
    decay_norm_and_bias: bool = False,
    processes: Processes = "same",
) -> torch.optim.Optimizer:
    """AdamW (Loshchilov and Hutter, 2019); weight decay is apart from the gradient."""
    groups = parameter_groups(
        module, lr, weight_decay, new_layer_rate, decay_norm_and_bias, new_layers, processes
    )
    return torch.optim.AdamW(groups, lr=lr, betas=(betas[0], betas[1]), eps=eps)
