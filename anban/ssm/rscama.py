"""RSCaMa: two dates of an image exchange what changed, in space and in time, through bidirectional Mamba mixers.

N layers of two modules, which go by two pairs of names:

- `SDSSM` (spatial difference-aware SSM; ST-SSM in notes on the paper): every date is scanned, gated by the difference of the
  dates, so that places that changed are let through;
- `TTSSM` (temporal-traversing SSM; TT-RSM in notes): the dates' tokens are interleaved, A1 B1 A2 B2 ..., and scanned as one
  sequence. Time is the order of the two dates at every place, and the scan crosses it at every second step.

Source: Liu et al., "RSCaMa: Remote Sensing Image Change Captioning with State Space Model", arXiv 2404.18895, section II;
numerically equal to the authors' release (github.com/Chen-Yang-Liu/RSCaMa). What the release declares but never reads (half of
the projections, `layerscan`, embeddings of words, all but the last fusion) is not built, and left out of its weights.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anban.errors import InputError
from anban.official import rename
from anban.ssm.mamba import causal_conv, decay, scan_sequence
from anban.ssm.parameters import undecayed

ORDERS = ("row", "row-reversed")
"""The two directions of every mixer; the first dimension of its selective parameters."""

_STACKED = {
    "x_proj": "x_proj{}.weight",
    "dt_proj": "dt_proj{}.weight",
    "dt_bias": "dt_proj{}.bias",
    "A_log": "A_log{}",
    "D": "D{}",
}
"""Parameters of a mixer's two directions -> what the release calls those of the first and, with `_back`, of the second."""


class BidirectionalMixer(nn.Module):
    """Mamba mixer in two directions with a gate that may come from elsewhere: (batch, L, d_model) -> the same.

    Both directions scan the same convolved tokens, each with its own steps, B, C, A and D; the convolution looks back only,
    whichever way the scan goes, as released.

    Args:
        d_model, d_state, d_conv, expand, dt_rank, conv_bias, bias, backend: see `anban.ssm.mamba.Mamba`.
    """

    def __init__(
        self,
        d_model: int,
        d_state: int = 16,
        d_conv: int = 3,
        expand: float = 2,
        dt_rank: int | Literal["auto"] = "auto",
        conv_bias: bool = True,
        bias: bool = False,
        backend: str = "auto",
    ):
        super().__init__()
        inner = int(expand * d_model)
        self.rank = math.ceil(d_model / 16) if dt_rank == "auto" else dt_rank
        self.d_state, self.backend = d_state, backend
        self.in_proj = nn.Linear(d_model, inner, bias=bias)
        self.gate_proj = nn.Linear(d_model, inner, bias=bias)
        self.conv1d = nn.Conv1d(inner, inner, d_conv, groups=inner, bias=conv_bias)
        self.x_proj = nn.Parameter(torch.empty(2, self.rank + 2 * d_state, inner))
        self.dt_proj = nn.Parameter(torch.empty(2, inner, self.rank))
        self.dt_bias = undecayed(torch.zeros(2, inner))
        self.A_log = undecayed(torch.empty(2, inner, d_state))
        self.D = undecayed(torch.ones(2, inner))
        self.out_proj = nn.Linear(inner, d_model, bias=bias)
        self._start()

    def forward(self, tokens: Tensor, gate: Tensor) -> Tensor:
        """Mix `tokens`; `gate` (batch, L, d_model) is what the gate is projected from."""
        x = F.silu(causal_conv(self.in_proj(tokens), self.conv1d.weight, self.conv1d.bias))
        sizes = [self.rank, self.d_state, self.d_state]
        selected = F.linear(x, self.x_proj.flatten(0, 1)).view(*x.shape[:2], 2, -1)
        dt, B, C = torch.split(selected, sizes, dim=-1)
        delta = torch.einsum("blkr,kdr->blkd", dt, self.dt_proj)
        y = scan_sequence(
            x,
            delta,
            B,
            C,
            A=decay(self.A_log),
            D=self.D,
            delta_bias=self.dt_bias,
            orders=ORDERS,
            backend=self.backend,
        )
        mixed: Tensor = self.out_proj(y.to(x.dtype) * F.silu(self.gate_proj(gate)))
        return mixed

    @torch.no_grad()
    def _start(self) -> None:
        """As released: Xavier for every matrix, the one of A included, and no bias of the steps; biases of projections are 0."""
        whole = nn.init.xavier_uniform_(
            self.in_proj.weight.new_empty(2 * self.in_proj.out_features, self.in_proj.in_features)
        )
        for projection, weight in zip((self.in_proj, self.gate_proj), whole.chunk(2), strict=True):
            projection.weight.copy_(weight)
        for stack in (self.x_proj, self.dt_proj, self.A_log):
            for matrix in stack:
                nn.init.xavier_uniform_(matrix)
        nn.init.xavier_uniform_(self.out_proj.weight)
        nn.init.xavier_uniform_(self.conv1d.weight)
        for projection in (self.in_proj, self.gate_proj, self.out_proj):
            if projection.bias is not None:
                nn.init.zeros_(projection.bias)


class CaMamba(nn.Module):
    """Norm, bidirectional mixer, residual, norm: the `CaMambaModel` that both modules of a layer are made of.

    Args:
        d_model: width of the tokens.
        gated: the gate comes from a second input, the difference of the dates, or else from the tokens themselves.
        norm_epsilon: of the two RMSNorms.
        mixer: further arguments of `BidirectionalMixer`.
    """

    def __init__(self, d_model: int, gated: bool, norm_epsilon: float = 1e-5, **mixer: object):
        super().__init__()
        self.gated = gated
        self.norm = nn.RMSNorm(d_model, eps=norm_epsilon)
        self.mixer = BidirectionalMixer(d_model, **mixer)  # type: ignore[arg-type]
        self.norm_f = nn.RMSNorm(d_model, eps=norm_epsilon)

    def forward(self, tokens: Tensor, difference: Tensor | None = None) -> Tensor:
        """Tokens (batch, L, d_model) -> the same; `difference` is given if, and only if, the block is `gated`."""
        if (difference is not None) != self.gated:
            raise InputError(
                "a CaMamba block was called "
                + ("without the difference of the dates" if self.gated else "with a difference"),
                expected="tokens and, where gated is True, the difference that gates them",
            )
        normed = self.norm(tokens)
        mixed: Tensor = self.norm_f(tokens + self.mixer(normed, normed if difference is None else difference))
        return mixed

    def from_official(self, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Rename the release's parameters, stack those of the two directions and leave out those that it never reads."""
        official = rename(state_dict, [(r"^layers\.0\.", ""), (r"^mixer\.in_proj_dif\.", "gate.")])
        own: dict[str, Tensor] = {}
        for kind in ("weight", "bias"):
            whole, difference = (official.pop(f"{name}.{kind}", None) for name in ("mixer.in_proj", "gate"))
            gate = difference if self.gated else whole
            if whole is not None and gate is not None:
                own[f"mixer.in_proj.{kind}"] = whole.chunk(2)[0]
                own[f"mixer.gate_proj.{kind}"] = gate.chunk(2)[1]
        for name, one in _STACKED.items():
            both = [official.pop(f"mixer.{one.format(way)}", None) for way in ("", "_back")]
            if both[0] is not None and both[1] is not None:
                own[f"mixer.{name}"] = torch.stack([both[0], both[1]])
        unread = r"embeddings\.|mixer\.(conv1d_back|[a-z]+_proj_dif(_back)?|linear_hid2(_back)?|out_LN)\."
        return own | {name: tensor for name, tensor in official.items() if not re.match(unread, name)}


class SDSSM(nn.Module):
    """SD-SSM (ST-SSM): every date is scanned by a `CaMamba` of its own, gated by the difference, later minus earlier."""

    def __init__(self, d_model: int, backend: str = "auto"):
        super().__init__()
        self.dates = nn.ModuleList(CaMamba(d_model, gated=True, backend=backend) for _ in range(2))

    def forward(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens of the earlier and the later date, (batch, L, d_model) each -> the same."""
        difference = b - a
        return self.dates[0](a, difference), self.dates[1](b, difference)


class TTSSM(nn.Module):
    """TT-SSM (TT-RSM): the tokens of both dates, interleaved, are scanned as one sequence of 2 L tokens."""

    def __init__(self, d_model: int, backend: str = "auto"):
        super().__init__()
        self.scan = CaMamba(d_model, gated=False, backend=backend)

    def forward(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens of the earlier and the later date, (batch, L, d_model) each -> the same."""
        tokens = self.scan(torch.stack((a, b), dim=2).flatten(1, 2))
        return tokens[:, ::2], tokens[:, 1::2]


STSSM = SDSSM
TTRSM = TTSSM


class _Fusion(nn.Module):
    """The dates' maps, concatenated, through a 1x1 convolution and a residual block of two more."""

    def __init__(self, channels: int):
        super().__init__()
        self.mix = nn.Conv2d(2 * channels, channels, kernel_size=1)
        self.refine = nn.Sequential(
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.Conv2d(channels, channels, kernel_size=3, padding=1),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.Conv2d(channels, channels, kernel_size=1),
            nn.BatchNorm2d(channels),
        )
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        mixed = self.mix(torch.cat((a, b), dim=1))
        return F.relu(mixed + self.refine(mixed))


class RSCaMaEncoder(nn.Module):
    """RSCaMa's encoder (`AttentiveEncoder`): features of two dates -> features of the change.

    A layer is SD-SSM, then TT-SSM; one LayerNorm, shared by all, stands between and behind them, and what TT-SSM was given is
    added back `alpha` times, a learned number that starts at 0.

    Args:
        n_layers: number of layers, at least 1.
        feature_size: height, width and channels of the features; the channels are even.
        backend: of the scans.
    """

    def __init__(
        self, n_layers: int = 3, feature_size: tuple[int, int, int] = (7, 7, 768), backend: str = "auto"
    ):
        super().__init__()
        self.height, self.width, channels = feature_size
        if n_layers < 1 or channels % 2:
            raise InputError(
                f"an RSCaMa encoder of {n_layers} layers and {channels} channels",
                expected="at least one layer and an even number of channels",
            )
        self.row_embedding = nn.Embedding(self.height, channels // 2)
        self.column_embedding = nn.Embedding(self.width, channels // 2)
        self.sd_ssm = nn.ModuleList(SDSSM(channels, backend) for _ in range(n_layers))
        self.tt_ssm = nn.ModuleList(TTSSM(channels, backend) for _ in range(n_layers))
        self.norm = nn.LayerNorm(channels)
        self.alpha = nn.Parameter(torch.tensor(0.0))
        self.fusion = _Fusion(channels)
        for embedding in (self.row_embedding, self.column_embedding):
            nn.init.xavier_uniform_(embedding.weight)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Tokens of the earlier and the later date, (batch, height * width, channels) each -> (batch, channels, tokens)."""
        position = self._position()
        a, b = a + position, b + position
        for sd_ssm, tt_ssm in zip(self.sd_ssm, self.tt_ssm, strict=True):
            given = tuple(map(self.norm, sd_ssm(a, b)))
            a, b = (
                self.norm(date) + old * self.alpha for date, old in zip(tt_ssm(*given), given, strict=True)
            )
        fused = self.fusion(self._map(a), self._map(b))
        change: Tensor = self.norm(fused.flatten(2).transpose(1, 2))
        return change.transpose(1, 2)

    def _position(self) -> Tensor:
        """(height * width, channels): the column's embedding, then the row's."""
        column = self.column_embedding.weight.expand(self.height, -1, -1)
        row = self.row_embedding.weight.unsqueeze(1).expand(-1, self.width, -1)
        return torch.cat((column, row), dim=-1).flatten(0, 1)

    def _map(self, tokens: Tensor) -> Tensor:
        return tokens.transpose(1, 2).reshape(len(tokens), -1, self.height, self.width)

    def from_official(self, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Rename the release's parameters and leave out those that it never reads."""
        last = len(self.sd_ssm) - 1
        own = rename(
            state_dict,
            [
                # The release looks rows up in the table of columns and columns in that of rows; both have the same size.
                (r"^w_embedding\.", "row_embedding."),
                (r"^h_embedding\.", "column_embedding."),
                (r"^CaMalayer_list\.(\d+)\.(\d)\.", r"sd_ssm.\1.dates.\2."),
                (r"^fuselayer_list\.(\d+)\.0\.", r"tt_ssm.\1.scan."),
                (r"^LN_norm\.", "norm."),
                (rf"^Conv1_list\.{last}\.", "fusion.mix."),
                (rf"^LN_list\.{last}\.left\.", "fusion.refine."),
            ],
        )
        unread = r"layerscan\.|fuselayer_list\.|Conv1_list\.|LN_list\."
        own = {name: tensor for name, tensor in own.items() if not re.match(unread, name)}
        for prefix, block in self._blocks():
            names = [name for name in own if name.startswith(prefix)]
            inner = block.from_official({name.removeprefix(prefix): own.pop(name) for name in names})
            own |= {prefix + name: tensor for name, tensor in inner.items()}
        return own

    def _blocks(self) -> Iterable[tuple[str, CaMamba]]:
        return ((f"{n}.", m) for n, m in self.named_modules() if isinstance(m, CaMamba))
