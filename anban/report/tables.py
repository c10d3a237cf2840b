"""Paper tables from records: one model of a table, four builders, three writers.

What the writers promise:

* Shares are shown x 100 with two decimals (other scores as `anban.study.scores` has them), as mean ± sample standard
  deviation over runs (no ± for a single run).
* Marks go by the number as printed: the best is bold, all of them where several tie; the second is underlined only
  where a single row is best (two firsts leave no second), and again all of them where several tie for it.
* An undefined value is "–" with a footnote that says why. It is never 0 and never marked.
* Numbers quoted from papers stand in rows with a dagger and a footnote with their source; they are never marked.
* The same records give the same bytes: no time, no path, no order that depends on the machine.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import PurePath
from typing import Any, Literal

import numpy as np

from anban.report.records import protocol_text
from anban.study.effects import Change, Effect, Effects
from anban.study.quoted import Quoted
from anban.study.records import Arm, Run, Study
from anban.study.scores import COUNTED, INPUTS, Score, score_named
from anban.study.stats import Difference
from anban.study.switches import Missing, plain, switches

Kind = Literal["text", "check", "count", "number", "difference", "interval", "p"]
Mark = Literal["best", "second"]

UNDEFINED = "–"
GRADIENT = "gradient of "  # begins the name of a recorded share of a gradient
WIDE = 90  # signs that a line of a paper has room for, about
LONG = 50  # rows that a page of a paper has room for, about


@dataclass(frozen=True)
class Column:
    """One column.

    Attributes:
        kind: how a cell is shown. "number" is scaled, rounded and may carry a spread; "difference" is the same with
            its sign; "interval" shows low to high; "check" is a tick or nothing; "p" is a probability.
        better: the direction in which cells are ranked, None for no marks.
        scale: the factor from the stored value to the shown one.
    """

    key: str
    title: str
    kind: Kind = "text"
    better: Literal["higher", "lower"] | None = None
    scale: float = 1.0
    digits: int = 2


@dataclass(frozen=True)
class Cell:
    """One value with what it rests on.

    Attributes:
        value: the stored value, unscaled; None where undefined.
        spread: the sample standard deviation over runs, None for fewer than two.
        low, high: the ends of an interval.
        runs: ids of the runs the value was computed from.
        note: why the value is undefined, or what else the reader must know.
        each: the single values behind a mean, in the order of `runs`.
    """

    value: float | str | bool | None
    spread: float | None = None
    low: float | None = None
    high: float | None = None
    runs: tuple[str, ...] = ()
    note: str | None = None
    mark: Mark | None = None
    each: tuple[float | None, ...] = ()


@dataclass(frozen=True)
class Row:
    """One method or variant.

    Attributes:
        stamp: which data, split and protocol its numbers carry.
        quoted: whether they come from a paper: shown with a dagger, ranked with nothing.
        given: whether they are of the data as they are, before any method: ranked with nothing.
    """

    key: str
    cells: dict[str, Cell]
    stamp: dict[str, str] = field(default_factory=dict)
    quoted: bool = False
    given: bool = False


@dataclass(frozen=True)
class Table:
    """A table as all writers and the page see it. `notes` stand below it."""

    name: str
    title: str
    caption: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()

    def column(self, key: str) -> Column:
        return next(column for column in self.columns if column.key == key)


# --- what a cell says -------------------------------------------------------------------------------------------


def number(value: float, digits: int = 2, *, sign: bool = False) -> str:
    """A number with a true minus sign; what rounds to zero carries no sign."""
    text = f"{value:{'+' if sign else ''}.{digits}f}"
    if float(text) == 0:
        text = text.lstrip("+-")
    return text.replace("-", "−")


def shown_score(value: float, score: Score, *, sign: bool = False) -> str:
    """A recorded value, or a difference of two, as its score is shown."""
    return number(score.scale * value, score.digits, sign=sign)


def p_text(p: float) -> str:
    """A probability with three decimals; what is smaller than they can show is "< 0.001"."""
    return "< 0.001" if p < 0.001 else number(p, 3)


def shown(cell: Cell, column: Column) -> tuple[str, str]:
    """What is printed for a cell: the main text and its spread ("" for none), in plain Unicode."""
    if column.kind == "check":
        return ("✓" if cell.value else ""), ""
    if column.kind == "interval":
        if cell.low is None or cell.high is None:
            return UNDEFINED, ""
        low, high = (number(end * column.scale, column.digits, sign=True) for end in (cell.low, cell.high))
        return f"[{low}, {high}]", ""
    if cell.value is None:
        return UNDEFINED, ""
    if isinstance(cell.value, str):
        return cell.value, ""
    if column.kind == "count":
        return f"{int(cell.value)}", ""
    if column.kind == "p":
        return p_text(cell.value), ""
    main = number(cell.value * column.scale, column.digits, sign=column.kind == "difference")
    return main, "" if cell.spread is None else number(cell.spread * column.scale, column.digits)


def ranked(table: Table) -> Table:
    """The table with best and second marked in every column that has a direction (rule in the module's docstring)."""
    rows = [dict(row.cells) for row in table.rows]
    for column in table.columns:
        if column.better is None:
            continue
        # Ranking what is printed keeps a bold 81.20 from standing beside a plain 81.20.
        printed = {
            place: round(float(cells[column.key].value) * column.scale, column.digits)  # type: ignore[arg-type]
            for place, cells in enumerate(rows)
            if not (table.rows[place].quoted or table.rows[place].given)
            and column.key in cells
            and cells[column.key].value is not None
        }
        if len(printed) < 2:
            continue
        order = sorted(set(printed.values()), reverse=column.better == "higher")
        best = [place for place, value in printed.items() if value == order[0]]
        second = [place for place, value in printed.items() if len(order) > 1 and value == order[1]]
        for place in best:
            rows[place][column.key] = replace(rows[place][column.key], mark="best")
        for place in second if len(best) == 1 else []:
            rows[place][column.key] = replace(rows[place][column.key], mark="second")
    return replace(
        table, rows=tuple(replace(row, cells=cells) for row, cells in zip(table.rows, rows, strict=True))
    )


def transposed(table: Table, corner: str) -> Table:
    """The table with rows and number columns exchanged, marks and all; `corner` is the title of its first column.

    Its number columns are all shown alike; the first column holds the names of the rows, which become headings.
    """
    name, *numbers = table.columns
    columns = [Column(corner.lower(), corner)]
    columns += [replace(numbers[0], key=row.key, title=shown(row.cells[name.key], name)[0], better=None)
                for row in table.rows]  # fmt: skip
    stamps = [row.stamp for row in table.rows]
    common = {
        key: value for key, value in stamps[0].items() if all(stamp.get(key) == value for stamp in stamps)
    }
    rows = []
    for column in numbers:
        cells = {row.key: row.cells[column.key] for row in table.rows}
        rows.append(Row(column.key, {corner.lower(): Cell(column.title), **cells}, common))
    return replace(table, columns=tuple(columns), rows=tuple(rows))


def footnotes(table: Table) -> dict[str, str]:
    """Note text of the cells -> its letter, in reading order."""
    texts = [
        row.cells[column.key].note
        for row in table.rows
        for column in table.columns
        if column.key in row.cells
    ]
    unique = dict.fromkeys(text for text in texts if text)
    return {text: _letter(index) for index, text in enumerate(unique)}


def _letter(index: int) -> str:
    return chr(ord("a") + index) if index < 26 else f"{_letter(index // 26 - 1)}{chr(ord('a') + index % 26)}"


# --- writers ----------------------------------------------------------------------------------------------------


def to_markdown(table: Table) -> str:
    """GitHub-flavoured Markdown: best in bold, second underlined with <u>."""

    def text(cell: Cell, column: Column) -> str:
        main, spread = shown(cell, column)
        main = _markdown_escape(main)
        main = {"best": f"**{main}**", "second": f"<u>{main}</u>", None: main}[cell.mark]
        letter = f"<sup>{letters[cell.note]}</sup>" if cell.note else ""
        return main + (f" ± {spread}" if spread else "") + letter

    letters = footnotes(table)
    lines = [f"**{_markdown_escape(table.title)}.** {_markdown_escape(table.caption)}", ""]
    lines.append("| " + " | ".join(_markdown_escape(_heading(column)) for column in table.columns) + " |")
    align = {"text": ":---", "check": ":---:"}
    lines.append("| " + " | ".join(align.get(column.kind, "---:") for column in table.columns) + " |")
    for row in table.rows:
        cells = (
            text(row.cells[column.key], column) if column.key in row.cells else "" for column in table.columns
        )
        lines.append("| " + " | ".join(cells) + " |")
    notes = [f"<sup>{letter}</sup> {_markdown_escape(note)}" for note, letter in letters.items()]
    notes += [_markdown_escape(note) for note in table.notes]
    # A blank line between notes: Markdown would run neighbouring lines into one paragraph.
    return "\n".join(lines) + "\n" + "".join(f"\n{note}\n" for note in notes)


def to_latex(table: Table) -> str:
    """A booktabs table environment; the packages it needs are named in its first line.

    A table that may be wider than the line is shrunk to it where it is; one of many rows is a longtable, over pages.
    """

    def text(cell: Cell, column: Column) -> str:
        main, spread = shown(cell, column)
        main = latex_escape(main)
        main = {"best": rf"\textbf{{{main}}}", "second": rf"\underline{{{main}}}", None: main}[cell.mark]
        letter = rf"\textsuperscript{{{letters[cell.note]}}}" if cell.note else ""
        return main + (rf" $\pm$ {spread}" if spread else "") + letter

    letters = footnotes(table)
    align = "".join({"text": "l", "check": "c"}.get(column.kind, "r") for column in table.columns)
    caption = rf"\caption{{{latex_escape(f'{table.title}. {table.caption}')}}}"
    label = rf"\label{{tab:{table.name}}}"
    head = [
        r"\toprule",
        " & ".join(latex_escape(_heading(column)) for column in table.columns) + r" \\",
        r"\midrule",
    ]
    body = []
    for row in table.rows:
        cells = (
            text(row.cells[column.key], column) if column.key in row.cells else "" for column in table.columns
        )
        body.append(" & ".join(cells) + r" \\")
    notes = [rf"\textsuperscript{{{letter}}} {latex_escape(note)}" for note, letter in letters.items()]
    notes += [latex_escape(note) for note in table.notes]
    told = r" \\ ".join(notes)
    below = [rf"\par\smallskip\parbox{{\linewidth}}{{\scriptsize {told}}}"] if notes else []
    if len(table.rows) > LONG:
        lines = [
            r"% needs \usepackage{booktabs, amssymb, longtable}",
            r"\begingroup\footnotesize\setlength{\tabcolsep}{3pt}",
            rf"\begin{{longtable}}{{@{{}}{align}@{{}}}}",
            caption,
            label + r" \\",
            *head,
            r"\endhead",
            r"\bottomrule",
            r"\endfoot",
            *body,
            r"\end{longtable}",
            *below,
            r"\endgroup",
        ]
        return "\n".join(lines) + "\n"
    is_wide = sum(_width(table, column) for column in table.columns) > WIDE
    lines = [
        rf"% needs \usepackage{{booktabs, amssymb{', graphicx' if is_wide else ''}}}",
        r"\begin{table}[t]",
        r"\centering",
        r"\footnotesize",
        r"\setlength{\tabcolsep}{3pt}",
        caption,
        label,
        *([r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%"] if is_wide else []),
        rf"\begin{{tabular}}{{@{{}}{align}@{{}}}}",
        *head,
        *body,
        r"\bottomrule",
        r"\end{tabular}" + ("}" if is_wide else ""),
        *below,
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def _width(table: Table, column: Column) -> int:
    """About how many signs wide a column is."""
    cells = [row.cells[column.key] for row in table.rows if column.key in row.cells]
    texts = [
        main + (f" ± {spread}" if spread else "") for main, spread in (shown(cell, column) for cell in cells)
    ]
    return 2 + max(len(text) for text in [_heading(column), *texts])


def to_csv(table: Table) -> str:
    """Full precision in stored units (scores as fractions 0..1), standard deviations, run ids and the stamp."""
    stamps = list(dict.fromkeys(key for row in table.rows for key in row.stamp))
    header: list[str] = []
    readers: list[Callable[[Row], Any]] = []

    def add(name: str, read: Callable[[Row], Any]) -> None:
        header.append(name)
        readers.append(read)

    def part(key: str, attribute: str) -> Callable[[Row], Any]:
        return lambda row: getattr(row.cells[key], attribute) if key in row.cells else None

    add("row", lambda row: row.key)
    for column in table.columns:
        if column.kind == "interval":
            add(f"{column.key}_low", part(column.key, "low"))
            add(f"{column.key}_high", part(column.key, "high"))
            continue
        add(column.key, part(column.key, "value"))
        if any(row.cells[column.key].spread is not None for row in table.rows if column.key in row.cells):
            add(f"{column.key}_std", part(column.key, "spread"))
    for key in stamps:
        add(key, lambda row, key=key: row.stamp.get(key))  # type: ignore[misc]
    add("runs", lambda row: " ".join(dict.fromkeys(run for cell in row.cells.values() for run in cell.runs)))

    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(header)
    for row in table.rows:
        writer.writerow([_csv_value(read(row)) for read in readers])
    return out.getvalue()


WRITERS: dict[str, Callable[[Table], str]] = {"md": to_markdown, "tex": to_latex, "csv": to_csv}


def _csv_value(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float):
        return repr(value)
    # A name that a spreadsheet would compute gets its sign for text; "+CBAM" is none, and stays what a script looks for.
    return f"'{value}" if _FORMULA.match(str(value)) else str(value)


_FORMULA = re.compile(r"\s*(?:[=@]|[+-].*[(|!])", re.DOTALL)


def _heading(column: Column) -> str:
    return column.title + {"higher": " ↑", "lower": " ↓", None: ""}[column.better]


def _markdown_escape(text: str) -> str:
    for sign in "\\`*_|<>":
        text = text.replace(sign, f"\\{sign}")
    return text.replace("\n", " ")


_LATEX = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "#": r"\#",
    "%": r"\%",
    "_": r"\_",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "[": "{[}",  # a bracket right after \\ would be read as its optional argument
    "−": "$-$",
    "–": "--",
    "—": "---",
    "±": r"$\pm$",
    "×": r"$\times$",
    "→": r"$\to$",
    "↑": r"$\uparrow$",
    "↓": r"$\downarrow$",
    "≤": r"$\leq$",
    "≥": r"$\geq$",
    "Δ": r"$\Delta$",
    "✓": r"\checkmark{}",
    "†": r"\dag{}",
    "\n": " ",
}


def latex_escape(text: str) -> str:
    """Text that LaTeX prints as it stands; signs that pdfLaTeX has no glyph for become commands."""
    return "".join(_LATEX.get(sign, sign) for sign in text)


# --- builders ---------------------------------------------------------------------------------------------------


def comparison_table(study: Study, quoted: Sequence[Quoted] = ()) -> Table:
    """Methods as rows; scores with their spread over runs, and beside them what they cost in parameters.

    Rows are in the order of the study, or in that of its groups, which then have a column.
    Where the study mixes protocols or data (see `open_study`) a column names each row's protocol and a note says so.
    The data as they are come first, where runs scored them, then rows of `quoted` numbers, as oldest methods do.
    """
    mixed = bool(study.mixed)
    columns = [Column("method", "Method"), *_group_column(study), Column("n", "n", "count")]
    compared = compared_scores(study)
    columns += [score_column(name) for name in compared]
    sizes = {arm.name: next((run.parameters for run in arm.finished), None) for arm in study.arms}
    if any(sizes.values()):
        columns.append(Column("parameters", "Params (M)", "number", None, 1e-6, 3))
    if mixed:
        columns.append(Column("protocol", "Protocol"))
    rows = _input_rows(study, compared)
    rows += [_quoted_row(number, row, compared) for number, row in enumerate(quoted)]
    for group, arm in study.rows:
        cells = {"method": Cell(arm.title), "group": Cell(group), "n": Cell(len(arm.finished))}
        cells |= {name: score_cell(arm, name) for name in compared}
        cells["parameters"] = Cell(sizes[arm.name], runs=tuple(run.id for run in arm.finished))
        if mixed:
            cells["protocol"] = Cell(_protocols_of_arm(study, arm))
        rows.append(Row(arm.name, cells, {"source": "measured", **stamp_of(study, arm)}))
    caption = f"Scores{_in_percent(compared)}, {scores_caption(study)}"
    notes = _notes(study)
    if quoted:
        notes += (
            "† Not measured here: training, data and protocol may differ, so it is neither ranked nor tested.",
        )
    return ranked(Table("comparison", "Comparison", caption, tuple(columns), tuple(rows), notes))


def _group_column(study: Study) -> list[Column]:
    return [Column("group", "Group")] if study.groups else []


def score_column(name: str) -> Column:
    score = score_named(name)
    better: Literal["higher", "lower"] = "higher" if score.higher_is_better else "lower"
    return Column(name, score.heading, "number", better, score.scale, score.digits)


def compared_scores(study: Study) -> list[str]:
    """The scores that stand in a table of methods."""
    if study.counted:
        usual: Iterable[str] = COUNTED[study.counted].compared
    else:
        usual = (name for arm in study.arms for name in arm.results if not name.startswith(tuple(INPUTS)))
    return list(dict.fromkeys([*usual, study.metric]))


def _input_rows(study: Study, compared: Sequence[str]) -> list[Row]:
    """A row for what every method starts from, where the runs scored it; the first run that did speaks for all."""
    rows = []
    for prefix, title in INPUTS.items():
        arm = next((arm for arm in study.arms if any(name.startswith(prefix) for name in arm.results)), None)
        if arm is not None:
            cells = {"method": Cell(title, note="The data as they are, before any method.")}
            cells |= {name: replace(score_cell(arm, prefix + name), spread=None) for name in compared}
            rows.append(
                Row(f"input-{title}", cells, {"source": "measured", **stamp_of(study, arm)}, given=True)
            )
    return rows


def _in_percent(names: Sequence[str]) -> str:
    """Which of the scores are shown in percent, as words after "Scores"."""
    shares = [name for name in names if score_named(name).is_share]
    if len(shares) == len(names):
        return " in percent"
    return f" ({', '.join(score_named(name).title for name in shares)} in percent)" if shares else ""


def _quoted_row(number: int, row: Quoted, compared: Sequence[str]) -> Row:
    protocol = row.protocol or "protocol not stated"
    note = f"Quoted from {row.source}; {row.data}, {protocol}."
    cells = {"method": Cell(f"{row.method} †", note=note)}
    for name in compared:
        lacking = None if name in row.scores else "Not given by the source."
        cells[name] = Cell(row.scores.get(name), note=lacking)
    stamp = {"source": f"quoted from {row.source}", "data": row.data, "protocol": row.protocol}
    return Row(f"quoted-{number + 1}", cells, stamp, quoted=True)


def ablation_table(study: Study) -> Table | None:
    """The base and the arms that stand on the same root recipe: a column per switch, scores, the difference to base.

    A switch with one other value than the base's is a column of check marks; with more, the value is printed.
    Returns None where no arm differs from the base by a switch.
    """
    mixed = bool(study.mixed)
    base = study.arm(study.base)
    arms = [arm for arm in study.arms if arm.root == base.root]
    switches = _switches(arms, base)
    if not switches:
        return None
    usual = COUNTED[study.counted].ablated if study.counted else ()
    scores = list(dict.fromkeys([*usual, study.metric]))
    columns = [Column("variant", "Variant"), *(column for column, _ in switches)]
    columns += [Column("n", "n", "count")]
    columns += [score_column(name) for name in scores]
    columns += _difference_columns(study.metric)
    if mixed:
        columns.append(Column("protocol", "Protocol"))
    rows = []
    for arm in arms:
        cells = {"variant": Cell(arm.title), "n": Cell(len(arm.finished))}
        cells |= {column.key: Cell(values[arm.name]) for column, values in switches}
        cells |= {name: score_cell(arm, name) for name in scores}
        if arm.name == study.base:
            cells["verdict"] = Cell("base")
        else:
            result = arm.results.get(study.metric)
            cells |= _difference_cells(result.difference if result else None, arm, base)
        if mixed:
            cells["protocol"] = Cell(_protocols_of_arm(study, arm))
        rows.append(Row(arm.name, cells, stamp_of(study, arm)))
    caption = (
        f"Scores{_in_percent(scores)} and differences in {score_named(study.metric).points} to {base.title}, "
        f"{scores_caption(study)} {_covered(study)}"
    )
    left = [arm.title for arm in study.arms if arm.root != base.root]
    notes = (*filter(None, [correction_text(study)]), *_notes(study))
    if left:
        notes += (f"Not shown, as they stand on another recipe than {base.root}: {', '.join(left)}.",)
    return ranked(Table("ablation", "Ablation", caption.strip(), tuple(columns), tuple(rows), notes))


def expectations_table(study: Study) -> Table | None:
    """What was expected of the arms beside what was measured: difference, interval, and whether it holds the expectation.

    Returns None where nothing is expected.
    """
    expected = [(arm, arm.expected) for arm in study.arms if arm.expected is not None]
    if not expected:
        return None
    score = score_named(study.metric)
    columns = (
        Column("method", "Method"),
        Column("over", "Over"),
        Column("expected", "Expected", "difference", None, score.scale, score.digits),
        *(column for column in _difference_columns(study.metric) if column.kind != "p"),
        Column("inside", "Inside"),
        Column("source", "Expected by"),
    )
    rows = []
    for arm, expectation in expected:
        over, found = study.arm(expectation.over), expectation.difference
        cells = {
            "method": Cell(arm.title),
            "over": Cell(over.title),
            "expected": Cell(expectation.gain / score.scale),
            **_difference_cells(found, arm, over),
            "inside": Cell(_inside(expectation.gain / score.scale, found)),
            "source": Cell(expectation.source or UNDEFINED),
        }
        rows.append(Row(arm.name, cells, stamp_of(study, arm)))
    caption = f"Gains in {score.points}, {scores_caption(study)} {_covered(study)}"
    notes = []
    if (family := max((e.difference.family for _, e in expected if e.difference), default=1)) > 1:
        notes.append(
            f"Verdicts are about a difference of 0, of {family} comparisons together (Holm); whether the expectation is "
            "inside goes by the interval of its comparison alone."
        )
    return Table("expectations", "Expected and measured", caption.strip(), columns, tuple(rows), tuple(notes))


def _inside(gain: float, found: Difference | None) -> str:
    """Whether the interval holds the gain; where not, on which side of it the measured interval lies."""
    if found is None or found.low is None or found.high is None:
        return UNDEFINED
    return "yes" if found.low <= gain <= found.high else "no, above" if found.low > gain else "no, below"


def correction_text(study: Study) -> str:
    """How the verdicts allow for the study's having several arms; "" for a single comparison."""
    found = [arm.results[study.metric].difference for arm in study.arms if study.metric in arm.results]
    family = max((one.family for one in found if one), default=1)
    if family < 2:
        return ""
    return (
        f"Verdicts are of {family} comparisons with {study.arm(study.base).title} together: Holm's correction keeps the "
        "chance of any false one at 5 %. Each interval and p is that of its comparison alone."
    )


def effects_table(found: Effects, part: int = 1, total: int = 1) -> Table:
    """What each switch, or group of inseparable switches, does to the score: one row per change.

    Args:
        part, total: of the tables of effects, each of runs that were measured alike; from 1.
    """
    score = score_named(found.metric)
    columns = (
        Column("switch", "Switch"),
        Column("change", "Change"),
        Column("n", "n", "count"),
        Column("others", "n before", "count"),
        *_difference_columns(found.metric, "effect"),
    )
    stamp = {
        "data": f"{found.alike.data} (fingerprint {found.alike.fingerprint})",
        "split": found.alike.split,
        "protocol": found.alike.protocol,
        "protocol_details": protocol_text(json.loads(found.alike.stamp)),
    }
    rows = []
    for place, effect in enumerate(found.effects):
        runs = tuple(found.observations[row].run.id for row in effect.runs)
        borrowed = "A run without a repeat: its spread is taken from the others." if effect.borrowed else None
        cells = {
            "switch": Cell(
                " + ".join(change.key for change in effect.changes), note=_inseparable(effect, found, score)
            ),
            "change": Cell("; ".join(_change_text(change) for change in effect.changes)),
            "n": Cell(len(runs), runs=runs),
            "others": Cell(effect.others),
            "effect": Cell(effect.value, runs=runs),
            "interval": Cell(None, low=effect.low, high=effect.high, runs=runs, note=borrowed),
            "p": Cell(effect.p, runs=runs),
            "p_adjusted": Cell(effect.p_adjusted, runs=runs),
            "verdict": Cell(effect.verdict if effect.p is not None else None, runs=runs),
        }
        rows.append(Row(f"effect-{place + 1}", cells, stamp))
    caption = (
        f"What each switch adds, in {score.points}, all others kept: least squares "
        f"over {len(found.observations)} runs of {found.configurations} settings on {stamp['data']}, split "
        f"{stamp['split']}, protocol {stamp['protocol']} ({stamp['protocol_details']}), {found.alike.checkpoint} "
        "checkpoint. Intervals cover other seeds, not other images; their errors (HC2) allow for unequal spread."
    )
    name, title = ("effects", "Effects") if part == 1 else (f"effects-{part}", f"Effects, part {part}")
    return Table(name, title, caption, columns, tuple(rows), tuple(_effect_notes(found, total)))


def _change_text(change: Change) -> str:
    return f"{change.before} → {change.after}" if change.before else change.after


def _inseparable(effect: Effect, found: Effects, score: Score) -> str | None:
    """The sentence on switches that the runs cannot tell apart; None for a single switch."""
    if len(effect.changes) < 2:
        return None
    *names, last = [change.key for change in effect.changes]
    what, runs = f"{', '.join(names)} and {last}", f"these {len(found.observations)} runs"
    joint = f"{shown_score(effect.value, score, sign=True)} {score.points}"
    if effect.together:
        return f"{what} were always changed together in {runs}; their joint effect is {joint}."
    return f"{what} cannot be told apart in {runs}, whose changes depend on one another; their joint effect is {joint}."


def _effect_notes(found: Effects, total: int) -> Iterator[str]:
    """What stands below a table of effects."""
    tested = sum(effect.p is not None for effect in found.effects)
    if not found.effects:
        yield "The runs differ in no switch."
    elif not tested:
        yield "No run is left to estimate the spread from, so there are no intervals: repeat settings with other seeds."
    if tested > 1:
        yield (
            f"Verdicts are of {tested} effects together: Holm's correction keeps the chance of any false one at 5 %. "
            "Each interval and p is that of its effect alone."
        )
    if found.misfit is not None and found.misfit < 1 - found.level:
        yield (
            f"The scores are no sum of single effects (lack of fit beside the seeds, p {p_text(found.misfit)}): "
            "switches depend on each other here, and an effect is a mean over these settings."
        )
    if total > 1:
        yield f"Runs on other data or under other protocols are never pooled; there are {total} tables of effects."
    commits = dict.fromkeys(str(each.run.info.get("commit")) for each in found.observations)
    if len(commits) > 1:
        yield f"The code differs too, which no switch tells: commits {', '.join(commits)}."


def gradient_table(study: Study) -> Table | None:
    """Which term of the loss moves which part of the network: a row per method and part, a column per term.

    Read from the series `gradient of PART/TERM`, shares of the gradient that reaches the part's weights; means over the
    steps at which they were looked at and over the arm's finished runs. None where no run looked.
    """
    rows, terms = [], dict[str, None]()
    for _, arm in study.rows:
        shares: dict[str, dict[str, list[float]]] = {}
        for run in arm.finished:
            names = dict.fromkeys(line["name"] for line in run.metrics if line["name"].startswith(GRADIENT))
            for name in names:
                part, _, term = name.removeprefix(GRADIENT).partition("/")
                shares.setdefault(part, {}).setdefault(term, []).append(
                    float(run.series("train", name)[1].mean())
                )
        for part, by_term in shares.items():
            terms |= dict.fromkeys(by_term)
            cells = {"method": Cell(arm.title), "part": Cell(part)}
            runs = tuple(run.id for run in arm.finished)
            cells |= {
                term: Cell(float(np.mean(each)), runs=runs, each=tuple(each))
                for term, each in by_term.items()
            }
            rows.append(Row(f"{arm.name}/{part}", cells, stamp_of(study, arm)))
    if not rows:
        return None
    columns = [Column("method", "Method"), Column("part", "Branch")]
    columns += [Column(term, term, "number", None, 100.0, 1) for term in terms]
    caption = (
        "Of the gradient that reaches the weights of each branch in training, the share in percent of each weighted "
        "term of the loss; means over the steps looked at and over runs."
    )
    return Table("gradients", "Gradients", caption, tuple(columns), tuple(rows))


def efficiency_table(study: Study) -> Table:
    """Parameters, MACs, FLOPs, frames per second, median latency and peak memory, with input and device named.

    Times are means over the arm's runs; where arms were measured under different conditions a column says so and
    nothing that depends on them is ranked.
    """
    conditions = {arm.name: _conditions(arm) for arm in study.arms}
    known = [text for text in conditions.values() if text]
    alike = len(set(known)) <= 1
    speed: Literal["higher", "lower"] | None = None
    columns = [Column("method", "Method"), *_group_column(study)]
    for key, title, better, scale in (
        ("parameters", "Params (M)", "lower", 1e-6),
        ("macs", "MACs (G)", "lower", 1e-9),
        ("flops", "FLOPs (G)", "lower", 1e-9),
        ("fps", "FPS", "higher", 1.0),
        ("latency_p50", "Latency p50 (ms)", "lower", 1.0),
        ("peak_memory_mb", "Peak memory (MB)", "lower", 1.0),
    ):
        speed = better if alike or key == "parameters" else None  # type: ignore[assignment]
        columns.append(Column(key, title, "number", speed, scale))
    if not alike:
        columns.append(Column("conditions", "Measured with"))
    rows = []
    for group, arm in study.rows:
        cells = {"method": Cell(arm.title), "group": Cell(group)}
        cells |= {
            column.key: _efficiency_cell(arm, column.key) for column in columns if column.kind == "number"
        }
        if not alike:
            cells["conditions"] = Cell(conditions[arm.name] or None)
        rows.append(Row(arm.name, cells, {"conditions": conditions[arm.name]}))
    if not known:
        caption = "No run was measured."
    elif alike:
        caption = f"Measured with {known[0]}."
    else:
        caption = "Conditions differ and are named in each row."
    caption += " Means over the runs of each method; two decimals."
    uncounted: dict[str, list[str]] = {}
    for arm in study.arms:
        names = sorted({op for run in arm.finished for op in _efficiency(run).get("uncounted") or []})
        if names:
            uncounted.setdefault(", ".join(names), []).append(arm.title)
    notes = [
        f"Not counted as operations ({'; '.join(titles)}): {names}." for names, titles in uncounted.items()
    ]
    return ranked(Table("efficiency", "Efficiency", caption, tuple(columns), tuple(rows), tuple(notes)))


def score_cell(arm: Arm, name: str) -> Cell:
    """One score of one arm over its finished runs."""
    runs = tuple(run.id for run in arm.finished)
    if not runs:
        return Cell(None, note=_without_runs(arm))
    result = arm.results.get(name)
    if result is None or not result.values:
        return Cell(None, runs=runs, note="Not recorded by these runs.")
    defined = sum(value is not None for value in result.values)
    note = None
    if result.mean is None:
        note = "Undefined: the score's denominator is 0."
    if defined < len(result.values):
        note = f"Undefined (denominator 0) in {len(result.values) - defined} of {len(result.values)} runs."
    return Cell(result.mean, result.std, runs=runs, note=note, each=result.values)


def _without_runs(arm: Arm) -> str:
    return f"{arm.why_empty[0].upper()}{arm.why_empty[1:]}."


def _difference_columns(metric: str, name: str = "difference") -> tuple[Column, ...]:
    score = score_named(metric)
    return (
        Column(name, f"Δ {score.heading}", "difference", None, score.scale, score.digits),
        Column("interval", "95 % interval", "interval", None, score.scale, score.digits),
        Column("p", "p", "p"),
        Column("p_adjusted", "p (Holm)", "p"),
        Column("verdict", "Verdict"),
    )


def _difference_cells(difference: Difference | None, arm: Arm, over: Arm) -> dict[str, Cell]:
    runs = tuple(run.id for run in (*arm.finished, *over.finished))
    if difference is None or difference.value is None:
        note = (difference.note if difference else None) or "no finished run to compare"
        note = f"No difference: {note}."
        lacking = {key: Cell(None) for key in ("interval", "p", "p_adjusted", "verdict")}
        return {"difference": Cell(None, note=note), **lacking}
    remark = f"{difference.note[0].upper()}{difference.note[1:]}." if difference.note else None
    return {
        "difference": Cell(difference.value, runs=runs),
        "interval": Cell(None, low=difference.low, high=difference.high, runs=runs, note=remark),
        "p": Cell(difference.p, runs=runs),
        "p_adjusted": Cell(difference.p_adjusted, runs=runs),
        "verdict": Cell(difference.verdict, runs=runs),
    }


def _switches(arms: Sequence[Arm], base: Arm) -> list[tuple[Column, dict[str, str | bool]]]:
    """A column and its value by arm name for each choice in which the effective recipes of the arms differ."""
    choices = switches([_effective(arm, base) for arm in arms])
    last = [key.split(".")[-1] for key in choices]
    found: list[tuple[Column, dict[str, str | bool]]] = []
    for (key, by_arm), short in zip(choices.items(), last, strict=True):
        values = dict(zip([arm.name for arm in arms], by_arm, strict=True))
        usual = values[base.name]
        name = key if last.count(short) > 1 else short
        others = [value for value in values.values() if value not in (usual, Missing.UNUSED)]
        if all(isinstance(value, bool) for value in values.values()):
            found.append((Column(key, name, "check"), values))
        elif len(texts := list(dict.fromkeys(map(plain, others)))) == 1:
            ticks: dict[str, str | bool] = {arm: value in others for arm, value in values.items()}
            found.append((Column(key, f"{name} = {texts[0]}", "check"), ticks))
        else:
            texts_of: dict[str, str | bool] = {arm: plain(value) for arm, value in values.items()}
            found.append((Column(key, name), texts_of))
    return found


def _effective(arm: Arm, base: Arm) -> dict[str, Any]:
    """The arm's effective recipe; where none of its runs kept one, the base's with the arm's recorded changes."""
    own = next((run.recipe for run in arm.runs if run.recipe), None)
    if own is not None:
        return own
    flat = next((run.recipe for run in base.runs if run.recipe), {})
    return {key: value for key, value in {**flat, **arm.switches}.items() if value != "(absent)"}


def _efficiency(run: Run) -> dict[str, Any]:
    return run.info.get("efficiency") or {}


def _efficiency_cell(arm: Arm, key: str) -> Cell:
    def read(run: Run) -> float | None:
        block = _efficiency(run)
        value = (block.get("latency_ms") or {}).get("p50") if key == "latency_p50" else block.get(key)
        return None if value is None else float(value)

    measured = {run.id: value for run in arm.finished if (value := read(run)) is not None}
    if not measured:
        return Cell(None, note="Not measured or not countable." if arm.finished else _without_runs(arm))
    values = tuple(measured.values())
    return Cell(float(np.mean(values)), runs=tuple(measured), each=values)


def _conditions(arm: Arm) -> str:
    """Input, batch, precision and device of the arm's measurements, joined where its runs disagree."""
    texts = []
    for run in arm.finished:
        block = _efficiency(run)
        if block:
            texts.append(
                f"input {block.get('input')}, batch {block.get('batch')}, "
                f"{block.get('precision')}, on {block.get('device')}"
            )
    return "; ".join(dict.fromkeys(texts))


def data_sets(study: Study, arms: Sequence[Arm] | None = None, *, short: bool = False) -> list[str]:
    """The data sets of the finished runs: "name (fingerprint 8d1f00c3b7aa, 12 test images)", or without fingerprint."""
    texts = []
    for arm in arms or study.arms:
        for run in arm.finished:
            data = run.info.get("data") or {}
            name = PurePath(str(data.get("root", "unknown data")).replace("\\", "/")).name
            count = (data.get("splits") or {}).get(study.split)
            images = "" if count is None else f", {count} {study.split} images"
            texts.append(
                f"{name}{images}" if short else f"{name} (fingerprint {data.get('fingerprint')}{images})"
            )
    return list(dict.fromkeys(texts))


def _protocols_of_arm(study: Study, arm: Arm) -> str:
    texts = [protocol_text(run.protocol(study.split, study.protocol)) for run in arm.finished]
    return " / ".join(dict.fromkeys(texts)) or UNDEFINED


def stamp_of(study: Study, arm: Arm) -> dict[str, str]:
    return {
        "data": "; ".join(data_sets(study, [arm])),
        "split": study.split,
        "protocol": study.protocol,
        "protocol_details": _protocols_of_arm(study, arm),
    }


def checkpoints(study: Study) -> list[str]:
    found = [run.checkpoint(study.split, study.protocol) for _, run in study.finished]
    return list(dict.fromkeys(name for name in found if name))


def scores_caption(study: Study) -> str:
    """Data set, split, protocol, checkpoint and seeds, as one run of words that ends with a full stop."""
    details = dict.fromkeys(
        protocol_text(run.protocol(study.split, study.protocol)) for _, run in study.finished
    )
    protocol = f"protocol {study.protocol}" + (
        f" ({next(iter(details))})" if len(details) == 1 else " (differs)"
    )
    seeds = sorted({run.seed for _, run in study.finished})
    words = [
        f"on {'; '.join(data_sets(study)) or 'no data'}",
        f"split {study.split}",
        protocol,
        f"{' / '.join(checkpoints(study)) or 'no'} checkpoint",
        f"mean ± standard deviation over n runs (seeds {', '.join(map(str, seeds)) or UNDEFINED})",
    ]
    return ", ".join(words) + "."


def _covered(study: Study) -> str:
    """What the intervals of the differences speak about."""
    found = [
        result.difference.covers
        for arm in study.arms
        if (result := arm.results.get(study.metric))
        and result.difference
        and result.difference.low is not None
    ]
    texts = list(dict.fromkeys(found))
    return f"Intervals cover {' or '.join(texts)}." if texts else ""


def _notes(study: Study) -> tuple[str, ...]:
    """What stands below a table of scores: mixed protocols or data, one-run arms, runs that did not finish."""
    notes = []
    if study.mixed:
        notes.append(f"Mixed on request, so rows are not measured alike: {'; '.join(study.mixed)}.")
    if len(data_sets(study)) > 1:
        notes.append(f"The runs used different data: {'; '.join(data_sets(study))}.")
    if len(checkpoints(study)) > 1:
        notes.append(f"Scores of different checkpoints stand side by side: {', '.join(checkpoints(study))}.")
    single = [arm.title for arm in study.arms if len(arm.finished) == 1]
    if single:
        notes.append(f"One run has no standard deviation: {', '.join(single)}.")
    for arm, group in left_out(study):
        why = (group[0].why or "no reason recorded").splitlines()[0].rstrip(".")
        notes.append(f"Left out: {arm.title}, {seeds_of(group)} ({group[0].state}): {why}.")
    return tuple(notes)


def left_out(study: Study) -> list[tuple[Arm, list[Run]]]:
    """The runs whose numbers are not used; those of one arm with the same state and reason together."""
    groups: dict[tuple[str, str, str | None], tuple[Arm, list[Run]]] = {}
    for arm, run in study.runs:
        if not run.finished:
            groups.setdefault((arm.name, run.state, run.why), (arm, []))[1].append(run)
    return list(groups.values())


def seeds_of(runs: Sequence[Run]) -> str:
    """ "seed 0" or "seeds 0, 1"."""
    return f"seed{'s' if len(runs) > 1 else ''} {', '.join(str(run.seed) for run in runs)}"
