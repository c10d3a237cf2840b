r"""Formulas from docstrings, so that a paper's "training details" say what the code computes.

A docstring states a formula as the losses and scores of anban do, in a paragraph of its own:

    Formula: $\frac{1}{N} \sum_i w_i$, where $w_i$ is what it is; $w$ = pos_weight, $v$ = other (None: $v = 1$).

That is LaTeX between the first two dollars, then remarks, then, after a semicolon, which argument a symbol stands for, and
what holds where that argument is None. `Formula of NAME:` states one of several. A paragraph `Notation:` explains the
symbols that formulas share.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

_FORMULA = re.compile(
    r"^Formula(?: of (\w+))?: \$([^$]+)\$(.*?)\.$(?=\n\n|\nFormula|\s*\Z)", re.DOTALL | re.MULTILINE
)
_NOTATION = re.compile(r"^Notation: (.+?)(?=\n\n|\Z)", re.DOTALL | re.MULTILINE)
_SYMBOL = re.compile(r"\$([^$]+)\$ = (\w+)(?: \(None: ([^()]+)\))?")


class Term(NamedTuple):
    """A loss as an experiment is trained with it; `terms_of(config)` of a task's module `loss` lists them.

    Attributes:
        name: among the LOSSES of the task.
        of: what it is computed of, as LaTeX; "" where that is the same for all.
        options: its `weight`, and its arguments by name.
    """

    name: str
    of: str
    options: Mapping[str, Any]


@dataclass(frozen=True)
class Formula:
    """A formula as it is stated.

    Attributes:
        name: of which quantity; "" where the docstring has one formula only.
        tex: LaTeX, without dollars.
        remark: what follows it up to the symbols, with its punctuation; may hold inline LaTeX.
        symbols: argument -> its symbol, and the words for the case that it is None ("" where it cannot be).
    """

    name: str
    tex: str
    remark: str
    symbols: dict[str, tuple[str, str]]

    def values(self, arguments: Mapping[str, Any]) -> str:
        """The arguments as "$w = 1$, empty = area": by their symbols where they have one."""
        parts = []
        for argument, value in arguments.items():
            symbol, without = self.symbols.get(argument, ("", ""))
            if value is None and without:
                parts.append(without)
            elif symbol:
                parts.append(f"${symbol} = {number(value)}$")
            else:
                parts.append(f"{argument} = {_word(value)}")
        return ", ".join(parts)

    @property
    def legend(self) -> str:
        """The symbols as "$w$ = pos_weight"."""
        return ", ".join(
            f"${symbol}$ = {argument}" + (f" (None: {without})" if without else "")
            for argument, (symbol, without) in self.symbols.items()
        )


def formulas(docstring: str | None) -> list[Formula]:
    """Every formula that a docstring states, in its order."""
    found = []
    for name, tex, rest in _FORMULA.findall(_flush(docstring)):
        remark, _, legend = " ".join(rest.split()).partition("; $")
        symbols = {argument: (symbol, without) for symbol, argument, without in _SYMBOL.findall("$" + legend)}
        found.append(Formula(name, " ".join(tex.split()), remark, symbols))
    return found


def notation(docstring: str | None) -> str:
    """The paragraph that explains the symbols; "" without one."""
    found = _NOTATION.search(_flush(docstring))
    return " ".join(found[1].split()) if found else ""


def number(value: Any) -> str:
    """A number, or several, as LaTeX: 0.5, 10^{-5}, (1, 2)."""
    if isinstance(value, list | tuple):
        return f"({', '.join(map(number, value))})"
    mantissa, _, exponent = f"{value:g}".partition("e")
    if not exponent:
        return mantissa
    power = f"10^{{{int(exponent)}}}"
    return power if mantissa == "1" else rf"{mantissa} \cdot {power}"


def _word(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "none" if value is None else str(value)


def _flush(docstring: str | None) -> str:
    return "\n".join(line.strip() for line in (docstring or "").splitlines())
