"""RSCaMa: equal to the release; what gates, what is interleaved, what is not built."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from anban.errors import InputError
from anban.official import load_official
from anban.ssm.golden import ADAPTERS
from anban.ssm.rscama import SDSSM, STSSM, TTRSM, TTSSM, BidirectionalMixer, CaMamba, RSCaMaEncoder
from anban.testing import golden

COPIES = Path(__file__).parents[1] / "golden"
CASES = [
    case
    for case in golden.find_cases([Path(os.environ.get("ANBAN_GOLDEN", COPIES)) / "ssm"])
    if case.official[0] == "Chen-Yang-Liu/RSCaMa"
]


def dates(*shape: int) -> tuple[Tensor, Tensor]:
    draws = torch.Generator().manual_seed(1)
    return torch.randn(shape, generator=draws), torch.randn(shape, generator=draws)


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_outputs_equal_the_official_ones(case: golden.Case) -> None:
    result = golden.check(case, ADAPTERS)
    assert result.status == "ok", (result.why, *golden.each_output(result))


def test_both_pairs_of_names_are_the_same_modules() -> None:
    assert STSSM is SDSSM
    assert TTRSM is TTSSM


# ---- space ----------------------------------------------------------------------------------------------------------


def test_where_nothing_changed_nothing_is_mixed_in() -> None:
    module, (a, _) = SDSSM(16), dates(2, 9, 16)
    for date, mixed in zip((a, a), module(a, a), strict=True):
        torch.testing.assert_close(mixed, torch.nn.functional.rms_norm(date, (16,), eps=1e-5))


def test_the_gate_is_open_at_the_places_that_changed_only() -> None:
    mixer = BidirectionalMixer(16)
    tokens, difference = dates(1, 9, 16)
    difference[:, [0, 1, 2, 4, 5, 7]] = 0
    opened = mixer(tokens, difference).abs().sum(-1)[0] > 0
    assert opened.nonzero().flatten().tolist() == [3, 6, 8]


@pytest.mark.parametrize("gated", [True, False])
def test_a_block_says_whether_it_wants_a_difference(gated: bool) -> None:
    tokens, difference = dates(1, 4, 16)
    block = CaMamba(16, gated=gated)
    with pytest.raises(InputError, match="without the difference" if gated else "with a difference"):
        block(tokens, None if gated else difference)


# ---- time -----------------------------------------------------------------------------------------------------------


def test_the_dates_are_scanned_token_by_token_in_turn() -> None:
    module, (a, b) = TTSSM(16), dates(2, 9, 16)
    seen: list[Tensor] = []
    module.scan.register_forward_hook(lambda _, given, out: seen.extend((given[0], out)))
    mixed = module(a, b)
    sequence, scanned = seen
    assert torch.equal(sequence[:, ::2], a)
    assert torch.equal(sequence[:, 1::2], b)
    assert all(torch.equal(scanned[:, date::2], mixed[date]) for date in (0, 1))


def test_every_token_of_a_date_sees_all_tokens_of_the_other() -> None:
    module, (a, b) = TTSSM(16), dates(1, 6, 16)
    b.requires_grad_()
    for token in range(6):
        seen = torch.autograd.grad(module(a, b)[0][:, token].sum(), b)[0].abs().sum(-1)
        assert (seen > 0).all()


# ---- the encoder ----------------------------------------------------------------------------------------------------


def test_the_encoder_takes_maps_that_are_not_square_and_trains() -> None:
    torch.manual_seed(0)
    encoder, (a, b) = RSCaMaEncoder(2, (3, 5, 16)), dates(2, 15, 16)
    change = encoder(a, b)
    assert change.shape == (2, 16, 15)
    change.pow(3).sum().backward()
    for name, parameter in encoder.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    assert encoder.alpha.item() == 0
    assert encoder.alpha.grad is not None
    assert encoder.alpha.grad.abs() > 0


def test_the_position_of_a_token_is_its_column_s_and_its_row_s() -> None:
    encoder = RSCaMaEncoder(1, (3, 5, 16))
    position = encoder._position().unflatten(0, (3, 5))
    for row in range(3):
        for column in range(5):
            expected = torch.cat((encoder.column_embedding.weight[column], encoder.row_embedding.weight[row]))
            assert torch.equal(position[row, column], expected)


def test_what_the_release_never_reads_is_left_out_and_all_else_is_asked_for() -> None:
    case = next(case for case in CASES if case.name == "rscama_encoder_n1_5x5")
    encoder, weights = RSCaMaEncoder(1, (5, 5, 32)), case.weights()
    load_official(encoder, weights)
    unread = [name for name in weights if "_dif_back." in name or name.startswith("layerscan.")]
    load_official(encoder, {name: tensor for name, tensor in weights.items() if name not in unread})
    missing = "CaMalayer_list.0.1.layers.0.mixer.A_log_back"
    with pytest.raises(InputError, match=r"1 missing \(sd_ssm\.0\.dates\.1\.mixer\.A_log\)"):
        load_official(encoder, {name: tensor for name, tensor in weights.items() if name != missing})


def test_the_start_is_the_release_s() -> None:
    torch.manual_seed(0)
    mixer = BidirectionalMixer(16, d_state=8, bias=True)
    bounds: dict[str, tuple[Tensor, int]] = {
        "in_proj": (mixer.in_proj.weight, 16 + 64),
        "gate_proj": (mixer.gate_proj.weight, 16 + 64),
        "A_log": (mixer.A_log, 32 + 8),
        "x_proj": (mixer.x_proj, 32 + 17),
    }
    for name, (weight, fans) in bounds.items():
        assert 0.95 < weight.abs().max() / (6 / fans) ** 0.5 <= 1.0, name
    for zero in (mixer.dt_bias, mixer.in_proj.bias, mixer.gate_proj.bias, mixer.out_proj.bias):
        assert not zero.any()


@pytest.mark.parametrize("arguments", [(0, (3, 3, 16)), (1, (3, 3, 15))], ids=["no layer", "odd channels"])
def test_an_encoder_that_cannot_be_is_one_message(arguments: Any) -> None:
    with pytest.raises(InputError, match="at least one layer and an even number of channels"):
        RSCaMaEncoder(*arguments)
