"""What `anban formulas` says a denoising network is trained with is what it is trained with."""

from __future__ import annotations

import re

import pytest
import torch

from anban.cli.formulas import sections_of, to_markdown
from anban.formulas import formulas
from anban.losses import restoration
from anban.recipe import load_recipe
from anban.recipe.schema import pick
from anban.tasks.denoise.loss import LOSS_SECTIONS, LOSSES, PLACES, Terms, terms_of
from anban.tasks.denoise.models.twin import Separated

EVERY = [
    "loss={l1: {weight: 100}, l2: {}, charbonnier: {}, texture: {encoder: identity}, perceptual: {encoder: identity},"
    " distillation: {norm: l2}}",
    "noise_loss={l1: {weight: 100}, l2: {}, charbonnier: {}, texture: {encoder: identity}}",
    "content_loss={l1: {}, l2: {}, charbonnier: {weight: 0.5}, texture: {encoder: identity},"
    " perceptual: {encoder: identity}}",
    "adversarial={loss: lsgan, weight: 0.01}",
    "alternation.generator_steps=10",
    "teacher.ema=0.9",
]


def test_every_term_of_every_section_is_stated() -> None:
    """Named as in the log, once each, in the same order and with the same weight."""
    config = load_recipe("ct/demo-cncl", EVERY).config
    assert all(set(config[section]) == set(table.table) for section, table in LOSS_SECTIONS.items())
    terms, image = Terms(config), torch.rand(2, 1, 8, 8)
    logged = terms.restored(Separated(image, image / 2, image / 3), image, image.square(), image.sqrt())
    logged |= terms.deceived(torch.rand(2, 4))
    place = {r"D(\hat x, \hat n, y)": "adversarial", r"\hat x, t": "image"}
    place |= {of: name for name, of in PLACES.values()}
    stated = terms_of(config)
    assert [f"{place[term.of]}/{term.name}" for term in stated] == list(logged)
    assert {term.name for term in stated} | {"gan"} == set(LOSSES)
    heavier = load_recipe("ct/demo-cncl", [*EVERY, "loss.l1.weight=200"]).config
    assert terms_of(heavier)[0].options["weight"] == 2 * stated[0].options["weight"] == 200


def test_every_loss_states_the_formula_of_its_function() -> None:
    for name in LOSSES:
        (own,) = formulas(pick(LOSSES, name, "loss").__doc__)
        (shared,) = formulas(getattr(restoration, name).__doc__)
        assert own.tex == shared.tex, name
        assert own.tex.count("{") == own.tex.count("}")
    text = to_markdown(sections_of("denoise"))
    assert all(f"- **{name}**:" in text for name in LOSSES)


@pytest.mark.parametrize("loss", ["gan", "lsgan"])
def test_the_critics_formula_is_what_its_function_computes(loss: str) -> None:
    scores = torch.tensor([0.3, -1.2, 2.0])
    for real in (True, False):
        sign, goal = (-1, 1) if real else (1, 0)
        wanted = {"gan": torch.log(1 + torch.exp(sign * scores)), "lsgan": (scores - goal) ** 2}[loss].mean()
        torch.testing.assert_close(getattr(restoration, loss)(scores, real=real), wanted)
    (formula,) = formulas(getattr(restoration, loss).__doc__)
    assert formula.tex == {
        "gan": r"\frac{1}{N} \sum_i \log(1 + e^{\mp s_i})", "lsgan": r"\frac{1}{N} \sum_i (s_i - c)^2"
    }[loss]  # fmt: skip


def test_a_recipe_states_noise_content_and_critic() -> None:
    config = load_recipe("ct/demo-cncl", EVERY).config
    (first, *_) = sections_of("denoise", {"all of it": config})[0].items
    text = first[1]
    for part in (
        r"100 \mathcal{L}_{\text{l1}}(\hat x, x)", r"100 \mathcal{L}_{\text{l1}}(\hat n, y - x)",
        r"0.5 \mathcal{L}_{\text{charbonnier}}(\hat c, x)", r"\mathcal{L}_{\text{distillation}}(\hat x, t)",
        r"0.01 \mathcal{L}_{\text{lsgan}}(D(\hat x, \hat n, y))", "generator_steps = 10",
    ):  # fmt: skip
        assert part in text, part
    (plain,) = sections_of("denoise", {"CNCL": load_recipe("ct/cncl-baseline").config})[0].items
    assert len(re.findall(r"\\mathcal\{L\}_", plain[1])) == 2
