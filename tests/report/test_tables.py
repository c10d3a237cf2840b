from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from fake_study import DEMO, FakeArm, edit_json

from anban.errors import InputError
from anban.report.records import open_study
from anban.report.tables import (
    WRITERS,
    Cell,
    Column,
    Row,
    Table,
    ablation_table,
    comparison_table,
    efficiency_table,
    latex_escape,
    number,
    ranked,
    shown,
    to_csv,
    to_latex,
    to_markdown,
)
from anban.study.quoted import Quoted, Source

COLUMNS = (
    Column("method", "Method"),
    Column("gate", "gate_on", "check"),
    Column("n", "n", "count"),
    Column("f1", "F1", "number", "higher", 100.0),
    Column("ms", "Latency (ms)", "number", "lower"),
    Column("delta", "Δ F1", "difference", None, 100.0),
    Column("interval", "95 % interval", "interval", None, 100.0),
)
TABLE = Table(
    "hand",
    "By hand",
    "On demo_data, 50 % of it & more.",
    COLUMNS,
    (
        Row("base", {
            "method": Cell("A_1 & 50%"), "gate": Cell(False), "n": Cell(2), "f1": Cell(0.8, 0.01, runs=("r1", "r2")),
            "ms": Cell(12.0), }, {"protocol": "whole"}),
        Row("gated", {
            "method": Cell("B|x"), "gate": Cell(True), "n": Cell(2), "f1": Cell(0.81234, 0.001, runs=("r3", "r4")),
            "ms": Cell(12.0), "delta": Cell(0.01234, runs=("r3", "r4", "r1", "r2")),
            "interval": Cell(None, low=-0.001, high=0.02), }, {"protocol": "whole"}),
        Row("failed", {
            "method": Cell("C"), "gate": Cell(True), "n": Cell(0), "f1": Cell(None, note="No run finished."),
            "ms": Cell(None, note="Not measured."), "delta": Cell(None, note="No run finished."),
            "interval": Cell(None), }, {"protocol": "whole"}),
    ),
    ("Left out: C, seed 0 (failed).",),
)  # fmt: skip


def test_markdown_of_a_table_made_by_hand() -> None:
    assert to_markdown(ranked(TABLE)) == (
        "**By hand.** On demo\\_data, 50 % of it & more.\n"
        "\n"
        "| Method | gate\\_on | n | F1 ↑ | Latency (ms) ↓ | Δ F1 | 95 % interval |\n"
        "| :--- | :---: | ---: | ---: | ---: | ---: | ---: |\n"
        "| A\\_1 & 50% |  | 2 | <u>80.00</u> ± 1.00 | **12.00** |  |  |\n"
        "| B\\|x | ✓ | 2 | **81.23** ± 0.10 | **12.00** | +1.23 | [−0.10, +2.00] |\n"
        "| C | ✓ | 0 | –<sup>a</sup> | –<sup>b</sup> | –<sup>a</sup> | – |\n"
        "\n<sup>a</sup> No run finished.\n"
        "\n<sup>b</sup> Not measured.\n"
        "\nLeft out: C, seed 0 (failed).\n"
    )


def test_latex_of_a_table_made_by_hand() -> None:
    assert to_latex(ranked(TABLE)) == (
        "% needs \\usepackage{booktabs, amssymb}\n"
        "\\begin{table}[t]\n"
        "\\centering\n"
        "\\footnotesize\n"
        "\\setlength{\\tabcolsep}{3pt}\n"
        "\\caption{By hand. On demo\\_data, 50 \\% of it \\& more.}\n"
        "\\label{tab:hand}\n"
        "\\begin{tabular}{@{}lcrrrrr@{}}\n"
        "\\toprule\n"
        "Method & gate\\_on & n & F1 $\\uparrow$ & Latency (ms) $\\downarrow$ & $\\Delta$ F1 & 95 \\% interval \\\\\n"
        "\\midrule\n"
        "A\\_1 \\& 50\\% &  & 2 & \\underline{80.00} $\\pm$ 1.00 & \\textbf{12.00} &  &  \\\\\n"
        "B|x & \\checkmark{} & 2 & \\textbf{81.23} $\\pm$ 0.10 & \\textbf{12.00} & +1.23 & {[}$-$0.10, +2.00] \\\\\n"
        "C & \\checkmark{} & 0 & --\\textsuperscript{a} & --\\textsuperscript{b} & --\\textsuperscript{a} & -- \\\\\n"
        "\\bottomrule\n"
        "\\end{tabular}\n"
        "\\par\\smallskip\\parbox{\\linewidth}{\\scriptsize \\textsuperscript{a} No run finished. \\\\ "
        "\\textsuperscript{b} Not measured. \\\\ Left out: C, seed 0 (failed).}\n"
        "\\end{table}\n"
    )


def test_csv_of_a_table_made_by_hand_has_full_precision_and_run_ids() -> None:
    assert to_csv(ranked(TABLE)) == (
        "row,method,gate,n,f1,f1_std,ms,delta,interval_low,interval_high,protocol,runs\n"
        "base,A_1 & 50%,no,2,0.8,0.01,12.0,,,,whole,r1 r2\n"
        "gated,B|x,yes,2,0.81234,0.001,12.0,0.01234,-0.001,0.02,whole,r3 r4 r1 r2\n"
        "failed,C,yes,0,,,,,,,whole,\n"
    )


@pytest.mark.parametrize(
    ("values", "marks"),
    [
        ([0.8, 0.9, 0.7], ["second", "best", None]),
        ([0.9, 0.9, 0.7], ["best", "best", None]),  # two firsts leave no second
        ([0.9, 0.7, 0.7], ["best", "second", "second"]),
        ([0.90001, 0.90004, 0.7], ["best", "best", None]),  # equal as printed
        ([0.9, None, 0.7], ["best", None, "second"]),
        ([0.9, None, None], [None, None, None]),  # nothing to compare with
        ([0.0, None, 0.5], ["second", None, "best"]),
    ],
)
def test_marks_go_by_the_printed_number(values: list[float | None], marks: list[str | None]) -> None:
    column = Column("f1", "F1", "number", "higher", 100.0)
    rows = tuple(Row(str(place), {"f1": Cell(value)}) for place, value in enumerate(values))
    table = ranked(Table("t", "T", "", (column,), rows))
    assert [row.cells["f1"].mark for row in table.rows] == marks
    lower = tuple(Row(row.key, {"f1": replace(row.cells["f1"], value=None if v is None else -v)})
                  for row, v in zip(rows, values, strict=True))  # fmt: skip
    table = ranked(Table("t", "T", "", (replace(column, better="lower"),), lower))
    assert [row.cells["f1"].mark for row in table.rows] == marks


def test_numbers_have_a_true_minus_and_no_negative_zero() -> None:
    assert number(-1.234) == "−1.23"
    assert number(-0.001) == "0.00"
    assert number(0.001, sign=True) == "0.00"
    assert number(1.0, sign=True) == "+1.00"


def test_small_probabilities_are_not_zero() -> None:
    column = Column("p", "p", "p")
    texts = [shown(Cell(p), column)[0] for p in (1.0, 0.0496, 0.001, 0.00099, 1e-9)]
    assert texts == ["1.000", "0.050", "0.001", "< 0.001", "< 0.001"]
    assert shown(Cell(None), column)[0] == "–"


def test_latex_escapes_every_special_sign() -> None:
    assert latex_escape(r"\{}$&#%_^~<>") == (
        r"\textbackslash{}\{\}\$\&\#\%\_\textasciicircum{}\textasciitilde{}\textless{}\textgreater{}"
    )


def test_comparison_shows_the_recorded_scores(study_file: Path) -> None:
    study = open_study(study_file)
    table = comparison_table(study)
    assert [row.cells["method"].value for row in table.rows] == [arm.title for arm in DEMO]
    assert [column.title for column in table.columns] == [
        "Method",
        "n",
        "Pre",
        "Rec",
        "F1",
        "IoU",
        "OA",
        "Kappa",
        "Params (M)",
    ]
    assert [row.cells["parameters"].value for row in table.rows] == [arm.parameters for arm in DEMO]
    for arm, row in zip(study.arms, table.rows, strict=True):
        recorded = [
            {score["name"]: score["value"] for score in run.info["scores"]}
            for run in arm.runs
            if run.info["scores"]
        ]
        assert row.cells["n"].value == len(recorded)
        assert row.cells["f1"].runs == tuple(run.id for run in arm.finished)
        for name in ("precision", "recall", "f1", "iou", "oa", "kappa"):
            values = [scores[name] for scores in recorded]
            if None in values:
                assert row.cells[name].value is None
            else:
                mean = sum(values) / len(values)
                spread = (sum((value - mean) ** 2 for value in values) / (len(values) - 1)) ** 0.5
                assert row.cells[name].value == pytest.approx(mean, abs=1e-12)
                assert row.cells[name].spread == pytest.approx(spread, abs=1e-9)


def test_groups_order_the_methods_and_have_a_column(small: Callable[..., Path]) -> None:
    file = small(DEMO)
    names = [arm.name for arm in DEMO]
    groups = {"last first": [names[-1]], "others": names[1:-1]}
    edit_json(file, groups=groups)
    study = open_study(file)
    for table in (comparison_table(study), efficiency_table(study)):
        assert [row.key for row in table.rows] == [names[-1], *names[1:-1], names[0]]
        assert [column.title for column in table.columns[:2]] == ["Method", "Group"]
        assert [row.cells["group"].value for row in table.rows] == [
            "last first",
            *["others"] * (len(names) - 2),
            "",
        ]
    edit_json(file, groups={"none": ["nobody"]})
    with pytest.raises(InputError, match="nobody"):
        open_study(file)


QUOTED = (
    Quoted("ChangeFormer", "LEVIR-CD", {"precision": 0.99, "f1": 0.98, "iou": 0.97},
           Source("Bandara and Patel 2022", 1, arxiv="2201.01293"), "256 px crops"),
    Quoted("BIT", "LEVIR-CD", {"f1": 0.8931}, Source("Chen et al. 2021", "II", doi="10.1109/TGRS.2021.3095166")),
)  # fmt: skip


def test_quoted_rows_are_marked_everywhere_and_never_ranked(study_file: Path) -> None:
    study = open_study(study_file)
    plain, table = comparison_table(study), comparison_table(study, QUOTED)
    assert [row.key for row in table.rows[:3]] == ["quoted-1", "quoted-2", "tinycd"]
    assert [[cell.mark for cell in row.cells.values()] for row in table.rows[2:]] == [
        [cell.mark for cell in row.cells.values()] for row in plain.rows
    ]
    assert all(cell.mark is None for row in table.rows[:2] for cell in row.cells.values())
    markdown, latex = to_markdown(table), to_latex(table)
    assert "| ChangeFormer †<sup>a</sup> |  | 99.00 | –<sup>b</sup> | 98.00 | 97.00 |" in markdown
    assert (
        "<sup>a</sup> Quoted from Bandara and Patel 2022, arXiv:2201.01293, table 1; LEVIR-CD, 256 px crops."
        in markdown
    )
    assert "doi:10.1109/TGRS.2021.3095166, table II; LEVIR-CD, protocol not stated." in markdown
    assert "† Not measured here" in markdown
    assert r"ChangeFormer \dag{}\textsuperscript{a} &  & 99.00" in latex
    assert r"\dag{} Not measured here" in latex
    rows = list(csv.DictReader(io.StringIO(to_csv(table))))
    assert [row["source"] for row in rows[:3]] == [
        "quoted from Bandara and Patel 2022, arXiv:2201.01293, table 1",
        "quoted from Chen et al. 2021, doi:10.1109/TGRS.2021.3095166, table II",
        "measured",
    ]
    assert (rows[0]["f1"], rows[0]["runs"], rows[0]["n"]) == ("0.98", "", "")
    assert [row["source"] for row in csv.DictReader(io.StringIO(to_csv(plain)))] == ["measured"] * len(DEMO)


def test_captions_carry_data_split_protocol_and_seeds(study_file: Path) -> None:
    caption = comparison_table(open_study(study_file)).caption
    for part in ("anban-demo", "8d1f00c3b7aa", "12 test images", "split test", "protocol whole", "input 256x256",
                 "threshold 0.5", "best checkpoint", "seeds 0, 1, 2"):  # fmt: skip
        assert part in caption


def test_undefined_scores_are_a_dash_with_a_footnote_and_never_zero(study_file: Path) -> None:
    table = comparison_table(open_study(study_file))
    line = next(line for line in to_markdown(table).splitlines() if line.startswith("| FC-Siam-diff"))
    assert line.split("|")[3].strip() == "–<sup>a</sup>"
    assert "<sup>a</sup> Undefined (denominator 0) in 3 of 3 runs." in to_markdown(table)
    row = next(csv.DictReader(io.StringIO(to_csv(replace(table, rows=table.rows[-1:])))))
    assert (row["precision"], row["recall"]) == ("", "0.0")


def test_failed_runs_stand_below_the_table(study_file: Path) -> None:
    table = comparison_table(open_study(study_file))
    assert any("gated + Dice, seed 2 (failed): The loss became NaN" in note for note in table.notes)
    assert "The loss became NaN" in to_markdown(table)
    assert "The loss became NaN" in to_latex(table)


def test_an_arm_without_a_finished_run_has_dashes(small: Callable[..., Path]) -> None:
    study = open_study(small((DEMO[0], replace(DEMO[1], fails=(0, 1)))))
    row = comparison_table(study).rows[1]
    assert row.cells["n"].value == 0
    assert row.cells["f1"] == Cell(None, note="None of its runs finished.")
    ablation = ablation_table(study)
    assert ablation is not None
    assert ablation.rows[1].cells["difference"].value is None
    assert ablation.rows[1].cells["verdict"].value is None


def test_ablation_has_a_column_per_switch_and_the_difference_to_the_base(study_file: Path) -> None:
    study = open_study(study_file)
    table = ablation_table(study)
    assert table is not None
    assert [row.key for row in table.rows] == ["tinycd", "gated", "dice", "both"]
    assert [column.title for column in table.columns][:3] == ["Variant", "fuse = gated", "dice = 1.0"]
    ticks = [(row.cells["model.fuse"].value, row.cells["loss.dice"].value) for row in table.rows]
    assert ticks == [(False, False), (True, False), (False, True), (True, True)]
    difference = study.arm("gated").results["f1"].difference
    assert difference is not None
    cells = table.rows[1].cells
    assert cells["difference"].value == difference.value
    assert (cells["interval"].low, cells["interval"].high) == (difference.low, difference.high)
    assert cells["verdict"].value == difference.verdict
    assert (cells["p"].value, cells["p_adjusted"].value) == (difference.p, difference.p_adjusted)
    assert difference.family == 5
    assert "5 comparisons with TinyCD together: Holm's correction" in to_markdown(table)
    assert table.rows[0].cells["verdict"].value == "base"
    assert any("FC-EF" in note for note in table.notes)


def test_a_switch_with_three_values_is_printed(small: Callable[..., Path]) -> None:
    arms = (DEMO[0], DEMO[1], FakeArm("sum", "Sum", 0.6, "change/demo-tinycd", {"model.fuse": "sum"}))
    table = ablation_table(open_study(small(arms)))
    assert table is not None
    assert [row.cells["model.fuse"].value for row in table.rows] == ["concat", "gated", "sum"]


def test_a_group_that_an_arm_lacks_and_a_named_part_are_one_switch_each(small: Callable[..., Path]) -> None:
    root = "change/demo-tinycd"
    arms = (DEMO[0], FakeArm("plain", "Plain", 0.6, root), FakeArm("other", "Other", 0.6, root))
    file = small(arms)
    for arm in json.loads(file.read_text())["arms"]:
        for run in arm["runs"]:
            path = Path(file.parent, run["path"], "recipe.yaml")
            recipe = yaml.safe_load(path.read_text())
            recipe["augment"] = {"flip": {"p": 0.5}, "light": {"brightness": 0.2, "hue": 0.1}}
            if arm["name"] == "plain":
                del recipe["augment"]["light"]
            if arm["name"] == "other":
                recipe["model"] = {"name": "change/other", "depth": 3}
            path.write_text(yaml.safe_dump(recipe))
    table = ablation_table(open_study(file))
    assert table is not None
    assert [column.title for column in table.columns][1:3] == ["light", "model = change/other"]
    ticks = [(row.cells["model"].value, row.cells["augment.light"].value) for row in table.rows]
    assert ticks == [(False, True), (False, False), (True, True)]


def test_methods_alone_have_no_ablation(small: Callable[..., Path]) -> None:
    assert ablation_table(open_study(small((DEMO[0], DEMO[4])))) is None


def test_efficiency_names_input_and_device_and_lists_uncounted_operations(study_file: Path) -> None:
    table = efficiency_table(open_study(study_file))
    assert "input 2 x 1x3x256x256, batch 1, fp32, on CPU, 2 cores" in table.caption
    assert table.rows[0].cells["parameters"].value == 285_128
    assert "| TinyCD | **0.29** | **1.54** | **3.11** |" in to_markdown(table)
    assert table.rows[-1].cells["macs"].value is None
    assert any("aten::grid_sampler_2d" in note for note in table.notes)


def test_efficiency_on_different_devices_is_told_and_not_ranked(small: Callable[..., Path]) -> None:
    file = small()
    runs = [Path(file.parent, run["path"]) for run in json.loads(file.read_text())["arms"][1]["runs"]]
    for run in runs:
        info = json.loads((run / "run.json").read_text())
        edit_json(run / "run.json", efficiency={**info["efficiency"], "device": "some GPU"})
    table = efficiency_table(open_study(file))
    assert [row.cells["conditions"].value for row in table.rows][1].endswith("on some GPU")  # type: ignore[union-attr]
    assert all(row.cells["fps"].mark is None for row in table.rows)
    assert table.rows[0].cells["parameters"].mark == "best"


def test_mixed_protocols_are_refused_and_told_when_asked_for(small: Callable[..., Path]) -> None:
    file = small()
    run = Path(file.parent, json.loads(file.read_text())["arms"][1]["runs"][0]["path"])
    protocols = json.loads((run / "run.json").read_text())["protocols"]
    edit_json(run / "run.json", protocols={"test/whole": {**protocols["test/whole"], "size": "1024x1024"}})
    with pytest.raises(InputError, match="protocol differs in size"):
        open_study(file)
    table = comparison_table(open_study(file, mix_protocols=True))
    assert any("Mixed on request" in note for note in table.notes)
    assert "1024x1024" in str(table.rows[1].cells["protocol"].value)
    assert "1024x1024" not in str(table.rows[0].cells["protocol"].value)


def test_a_number_without_a_protocol_is_refused(small: Callable[..., Path]) -> None:
    file = small()
    for arm in json.loads(file.read_text())["arms"]:
        for run in arm["runs"]:
            edit_json(Path(file.parent, run["path"], "run.json"), protocols={})
    with pytest.raises(InputError, match="do not describe"):
        open_study(file)


def test_the_same_records_give_the_same_bytes(study_file: Path) -> None:
    for build in (comparison_table, ablation_table, efficiency_table):
        one, two = build(open_study(study_file)), build(open_study(study_file))
        assert one is not None
        assert two is not None
        for write in WRITERS.values():
            assert write(one).encode() == write(two).encode()
            assert str(study_file.parent.parent.parent) not in write(one)
