"""Every kind of attention: cheap and by the definition the same, gradients too; what its mask hides; what it costs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from anban.engine.profile import count
from anban.errors import InputError
from anban.tasks.detect.models.attention import ATTENTION, AnyAttention, make_attention
from anban.tasks.detect.models.attention.layers import LSH, LogSparseAttention, Patterned, Reduced
from anban.tasks.detect.models.attention.patterns import Atrous, Fixed, Lines, Pattern, Strided, log_mask
from anban.tasks.detect.models.settings import Attention

SIZES = [(6, 8), (5, 7), (8, 3), (1, 1)]
VARIANTS: dict[str, Attention] = {
    **{kind: Attention(kind, reductions=(1,)) for kind in ATTENTION},
    "reduced by 2": Attention("reduced", reductions=(2,)),
    "strided, VideoGPT": Attention("strided", block=4, stride=3, window=2),
    "strided, no window": Attention("strided", window=1),
    "strided, wide window": Attention("strided", stride=3, window=7),
    "fixed, torch-blocksparse": Attention("fixed", block=4, stride=4, summary=1),
    "fixed, two summaries": Attention("fixed", stride=5, summary=2),
    "fixed, all summaries": Attention("fixed", stride=2, summary=2),
    "atrous, rate 5": Attention("atrous", rate=5),
    "lsh, many buckets": Attention("lsh", buckets=64, hashes=3),
    "lsh, two buckets": Attention("lsh", buckets=2, hashes=1),
    "log-sparse, short": Attention("log-sparse", stretch=4, taps=3),
    "log-sparse, added": Attention("log-sparse", mask="added"),
}
PATTERNS: list[Pattern] = [
    Lines("row"),
    Lines("column"),
    Atrous(3),
    Atrous(2, axes=2),
    Strided(),
    Strided(stride=3, window=5),
    Strided(stride=2, window=2, block=3),
    Fixed(),
    Fixed(stride=4, summary=2, block=2),
]


def layer(settings: Attention, width: int = 8, heads: int = 2, **options: Any) -> AnyAttention:
    torch.manual_seed(0)
    return make_attention(settings, 0, 1, width=width, heads=heads, **options).double()


def tokens(size: tuple[int, int], width: int = 8, batch: int = 2) -> Tensor:
    draws = torch.Generator().manual_seed(1)
    return torch.randn(batch, size[0] * size[1], width, generator=draws, dtype=torch.float64)


@pytest.mark.parametrize(
    ("name", "size"),
    [(name, size) for name in VARIANTS for size in SIZES if (name, size) != ("reduced by 2", (1, 1))],
)
def test_the_cheap_form_is_the_definition(name: str, size: tuple[int, int]) -> None:
    attention = layer(VARIANTS[name])
    results = []
    for compute in (attention, attention.reference):
        x = tokens(size).requires_grad_()
        out = compute(x, size)
        attention.zero_grad()
        (out * torch.arange(out.numel()).reshape(out.shape).sin()).sum().backward()
        gradients = [parameter.grad for parameter in attention.parameters()]
        assert x.grad is not None
        results.append([out.detach(), x.grad, *(g.clone() for g in gradients if g is not None)])
    cheap, definition = results
    assert len(cheap) == len(definition)
    for ours, theirs in zip(cheap, definition, strict=True):
        assert torch.isfinite(ours).all()
        torch.testing.assert_close(ours, theirs, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("name", VARIANTS)
def test_in_single_precision_too(name: str) -> None:
    attention, x = layer(VARIANTS[name], 16).float(), tokens((6, 8), 16).float()
    torch.testing.assert_close(attention(x, (6, 8)), attention.reference(x, (6, 8)), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_a_mask_masks(pattern: Pattern) -> None:
    """Values that a token does not see do not reach it, values that it sees do; each token sees itself."""
    size = (4, 5)
    torch.manual_seed(0)
    attention = Patterned(4, 1, pattern=pattern).double()
    mask = pattern.mask(*size)
    assert mask.diagonal().all()
    x = tokens(size, 4, batch=1).requires_grad_()
    for i in (0, 7, 19):
        (gradient,) = torch.autograd.grad(attention(x, size)[0, i].sum(), x)
        assert torch.equal(gradient[0].abs().sum(dim=-1) > 0, mask[i])


@pytest.mark.parametrize("name", VARIANTS)
def test_rows_of_the_attention_matrix_add_up_to_one(name: str) -> None:
    weights = layer(VARIANTS[name]).weights(tokens((6, 8)), (6, 8))
    assert weights.shape[:3] == (2, 2, 48)
    torch.testing.assert_close(weights.sum(dim=-1), torch.ones(2, 2, 48, dtype=torch.float64))


# ---- the patterns, against their sources' words -----------------------------------------------------------------------


def seen(pattern: Pattern, size: tuple[int, int], token: int) -> set[int]:
    return set(pattern.mask(*size)[token].nonzero().flatten().tolist())


def test_strided_sees_a_window_and_every_stride_th_token() -> None:
    assert seen(Strided(stride=4), (3, 8), 10) == {7, 8, 9, 10, 11, 12, 13, 2, 6, 14, 18, 22}


def test_a_stride_is_a_row_of_the_map_by_default() -> None:
    assert seen(Strided(window=1), (4, 5), 12) == {2, 7, 12, 17}
    assert seen(Strided(window=1, block=2), (3, 4), 5) == {0, 1, 4, 5, 8, 9}


def test_fixed_sees_its_stretch_and_the_ends_of_all() -> None:
    assert seen(Fixed(stride=4, summary=1), (2, 8), 5) == {4, 5, 6, 7, 3, 11, 15}
    assert seen(Fixed(stride=2, summary=1, block=2), (2, 8), 0) == {0, 1, 2, 3, 6, 7, 10, 11, 14, 15}


def test_atrous_sees_multiples_of_its_rate() -> None:
    assert seen(Atrous(3), (2, 5), 4) == {1, 4, 7}
    assert seen(Atrous(2, axes=2), (3, 4), 1) == {1, 3, 9, 11}


def test_lines() -> None:
    assert seen(Lines("row"), (2, 3), 4) == {3, 4, 5}
    assert seen(Lines("column"), (2, 3), 4) == {1, 4}


def published_log_row(token: int, stretch: int, total: int) -> set[int]:
    """The rule of the release, step by step."""
    length = (stretch - 1).bit_length()
    if token < total // stretch * 2 * length:
        return set(range(token + 1))
    found: set[int] = set()
    end = token
    while end >= 0:
        if end < length - 1:
            return found | set(range(end))
        found |= set(range(end - length + 1, end + 1))
        jumps = [end - length + 1 - 2**power for power in range(length)]
        found |= {jump for jump in jumps if jump >= 0 and end - jump <= stretch}
        end -= stretch
    return found


@pytest.mark.parametrize(
    ("total", "stretch"), [(48, 8), (20, 8), (64, 4), (100, 16), (7, 8), (30, 2), (33, 5), (9, 1)]
)
def test_the_log_sparse_mask_is_the_published_one(total: int, stretch: int) -> None:
    mask = log_mask(total, stretch)
    for token in range(total):
        assert set(mask[token].nonzero().flatten().tolist()) == published_log_row(token, stretch, total)


def test_log_sparse_attention_looks_back_and_the_published_one_everywhere() -> None:
    size, token = (8, 8), 60
    x = tokens(size, 4, batch=1)
    reached = {}
    for mask in ("masked", "added"):
        torch.manual_seed(0)
        attention = LogSparseAttention(4, 1, taps=1, mask=mask).double()  # type: ignore[arg-type]
        given = x.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(attention(given, size)[0, token].sum(), given)
        reached[mask] = set((gradient[0].abs().sum(dim=-1) > 0).nonzero().flatten().tolist())
    assert reached["masked"] == published_log_row(token, 8, 64) | {token}
    assert reached["added"] == set(range(64))


def test_lsh_puts_equal_tokens_together_and_leaves_itself_out() -> None:
    torch.manual_seed(0)
    attention = LSH(8, 1, buckets=16, hashes=2).double()
    x = tokens((4, 8), batch=1)
    x[0, 20] = x[0, 3]
    weights = attention.weights(x, (4, 8))[0, 0]
    assert weights[3, 20] > 0
    assert weights[20, 3] > 0
    alone = weights.diagonal() > 0
    assert torch.equal(weights.diagonal()[alone], torch.ones(int(alone.sum()), dtype=torch.float64))
    assert not alone[3]


# ---- what it costs ------------------------------------------------------------------------------------------------------


class _On(nn.Module):
    def __init__(self, attention: AnyAttention, size: tuple[int, int]):
        super().__init__()
        self.attention, self.size = attention, size

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.attention(x, self.size)
        return out


@pytest.mark.parametrize("size", [(6, 8), (5, 7)], ids=str)
@pytest.mark.parametrize("name", VARIANTS)
def test_the_cost_is_what_the_profile_counts(name: str, size: tuple[int, int]) -> None:
    attention = layer(VARIANTS[name])
    assert count(_On(attention, size), (tokens(size, batch=3),)).macs == 3 * attention.macs(size)


def test_sparse_attention_grows_slower_than_full_attention() -> None:
    def growth(settings: Attention) -> float:
        attention = layer(settings)
        projections = 4 * 8**2
        small, large = (attention.macs((side, side)) - projections * side**2 for side in (16, 64))
        return large / small

    assert growth(Attention("full")) == 16**2
    for kind in ("strided", "fixed", "axial"):  # N^1.5
        assert growth(Attention(kind, stride=None)) < 80  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Attention(buckets=3), "even"),
        (lambda: Reduced(8, 2, reduction=4)(torch.zeros(1, 6, 8), (2, 3)), "sides of at least 4"),
    ],
)
def test_what_cannot_be_is_refused(make: Callable[[], Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        make()


def test_attention_weights_are_dropped_in_training_only() -> None:
    for kind in ("full", "strided", "lsh", "log-sparse"):
        attention = layer(Attention(kind), attention_dropout=0.5)  # type: ignore[arg-type]
        x = tokens((4, 4))
        torch.testing.assert_close(attention.eval()(x, (4, 4)), attention.reference(x, (4, 4)))
        assert not torch.allclose(attention.train()(x, (4, 4)), attention.reference(x, (4, 4)))
