"""`anban formulas`: what the losses and scores of an experiment compute, for a paper's training details."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from anban.cli.recipes import Overrides

if TYPE_CHECKING:
    from anban.formulas import Formula, Term


class Section(NamedTuple):
    """A heading, a paragraph, and named items; texts may hold inline LaTeX between dollars."""

    title: str
    text: str
    items: list[tuple[str, str]]


def formulas(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="[ID_OR_FILE]", help="a recipe, a study or a study file; by default all of --task"
        ),
    ] = None,
    overrides: Overrides = None,
    out: Annotated[
        Path | None, typer.Option(help="folder for formulas.md and formulas.tex; printed by default")
    ] = None,
    task: Annotated[
        str | None, typer.Option(help="whose losses and scores, where there is no ID_OR_FILE")
    ] = None,
) -> None:
    """Write the formulas of losses and scores, with the weights and parameters that a recipe or study gives them."""
    from anban.cli.tasks import named
    from anban.study.study import load_plan

    if name is not None:
        plan = load_plan(name, list(overrides or []))
        methods = {arm.title: arm.recipe.config for arm in plan.arms}
        sections = sections_of(plan.arms[0].recipe.task, methods)
    else:
        sections = sections_of(named(task))
    if out is None:
        print(to_markdown(sections), end="")
        return
    out.mkdir(parents=True, exist_ok=True)
    for suffix, write in (("md", to_markdown), ("tex", to_latex)):
        (out / f"formulas.{suffix}").write_text(write(sections), encoding="utf-8")
        print(out / f"formulas.{suffix}")


def sections_of(task: str, methods: dict[str, dict[str, Any]] | None = None) -> list[Section]:
    """The losses and the scores of a task; with `methods` (title -> recipe) only the losses in use, and how."""
    import importlib

    from anban.formulas import formulas, notation
    from anban.recipe.schema import pick
    from anban.study.scores import score_named

    loss = importlib.import_module(f"anban.tasks.{task}.loss")
    losses = loss.LOSSES
    scores = importlib.import_module(f"anban.tasks.{task}.metric").FORMULAS
    trained = {title: _terms(loss, config) for title, config in (methods or {}).items()}
    used = {term.name for found in trained.values() for term in found}
    functions = {name: pick(losses, name, "loss") for name in losses if methods is None or name in used}
    # A module's own notation, or else its package's; each once.
    words = dict.fromkeys(
        notation(importlib.import_module(module).__doc__)
        or notation(importlib.import_module(module.rpartition(".")[0]).__doc__)
        for module in dict.fromkeys(function.__module__ for function in functions.values())
    )
    terms = {term: formulas(function.__doc__)[0] for term, function in functions.items()}
    stated = [
        (
            term,
            "; ".join(filter(None, (f"${_symbol(term)} = {formula.tex}${formula.remark}", formula.legend))),
        )
        for term, formula in terms.items()
    ]
    sections = []
    if methods is not None:
        text = notation(loss.__doc__)
        words.pop(text, None)  # said once
        sections.append(Section("Loss of each method", _sentence(text), _of_methods(methods, trained, terms)))
    sections.append(Section("Losses", " ".join(map(_sentence, words)), stated))
    stated = [
        (score_named(formula.name).title, f"${formula.tex}${formula.remark}")
        for formula in formulas(scores.__doc__)
    ]
    return [*sections, Section("Scores", _sentence(notation(scores.__doc__)), stated)]


def _terms(loss: ModuleType, config: dict[str, Any]) -> list[Term]:
    """What a network is trained with: as the task's module of losses says, or else the recipe's section `loss`."""
    from anban.formulas import Term

    if hasattr(loss, "terms_of"):
        return list(loss.terms_of(config))
    return [Term(name, "", options) for name, options in config["loss"].items()]


def _of_methods(
    methods: dict[str, dict[str, Any]], trained: dict[str, list[Term]], formulas: dict[str, Formula]
) -> list[tuple[str, str]]:
    """What each method is trained with; those with the same loss share an item."""
    from anban.formulas import number

    alike: dict[str, list[str]] = {}
    for title, config in methods.items():
        total, parameters = [], []
        for name, of, options in trained[title]:
            weight, own = options["weight"], {key: x for key, x in options.items() if key != "weight"}
            symbol = f"{_symbol(name)}({of})" if of else _symbol(name)
            total.append(symbol if weight == 1 else f"{number(weight)} {symbol}")
            whose = f"{name} of ${of}$" if of else name
            parameters += [f"{whose}: {values}"] if (values := formulas[name].values(own)) else []
        if "supervision" in config:
            parameters.append(rf"$\omega = {number([1, *config['supervision']['weights']])}$")
        text = "; ".join([rf"$\mathcal{{L}} = {' + '.join(total)}$", *parameters])
        alike.setdefault(text, []).append(title)
    return [("; ".join(titles), text) for text, titles in alike.items()]


def _symbol(term: str) -> str:
    return rf"\mathcal{{L}}_{{\text{{{term}}}}}"


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]


def to_markdown(sections: Sequence[Section]) -> str:
    """Headings of the second level, so that a page can take them in."""
    parts = []
    for section in sections:
        items = "".join(f"- **{head}**: {text}\n" for head, text in section.items)
        text = f"{section.text}\n\n" if section.text else ""
        parts.append(f"## {section.title}\n\n{text}{items}")
    return "\n".join(parts)


def to_latex(sections: Sequence[Section]) -> str:
    """Description lists under unnumbered headings."""
    lines = [r"% needs \usepackage{amsmath}"]
    for section in sections:
        lines += [rf"\subsection*{{{section.title}}}", _latex(section.text), r"\begin{description}"]
        lines += [rf"\item[{{{_latex(head)}}}] {_latex(text)}" for head, text in section.items]
        lines.append(r"\end{description}")
    return "\n".join(lines) + "\n"


def _latex(text: str) -> str:
    """Escape what stands outside of the dollars."""
    from anban.report.tables import latex_escape

    return "$".join(part if i % 2 else latex_escape(part) for i, part in enumerate(text.split("$")))
