from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest
from fake_study import DEMO, FakeArm, edit_json
from typer.testing import CliRunner

from anban.cli.report import report as report_verb
from anban.errors import InputError
from anban.report import figures, write_report
from anban.report.page import cautions, slug, verdicts
from anban.report.records import open_study
from anban.study.records import Arm, Result, Run, Study
from anban.study.stats import Difference


@pytest.fixture
def no_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves out the figure files, which take most of the time; the page itself is written as always."""
    monkeypatch.setattr(figures, "save", lambda figure, stem: [])


class Elements(HTMLParser):
    """Start tags with their attributes, in document order."""

    def __init__(self, text: str):
        super().__init__()
        self.all: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.all.append((tag, dict(attrs)))

    def values(self, attribute: str, tag: str | None = None) -> list[str]:
        return [
            given[attribute] or "" for name, given in self.all if attribute in given and tag in (None, name)
        ]


@pytest.fixture(scope="module")
def text(page: Path) -> str:
    return page.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def elements(text: str) -> Elements:
    return Elements(text)


def test_a_report_is_a_page_with_tables_and_figures(page: Path) -> None:
    names = {path.relative_to(page.parent).as_posix() for path in page.parent.rglob("*") if path.is_file()}
    tables = {
        f"tables/{name}.{kind}"
        for name in ("comparison", "ablation", "efficiency")
        for kind in ("md", "tex", "csv")
    }
    drawn = {
        f"figures/{name}.{kind}"
        for name in ("sheet", "curves", "differences", "confusion")
        for kind in ("png", "pdf")
    }
    assert names == {"report.html"} | tables | drawn


def test_the_page_needs_no_other_file_and_no_network(text: str, elements: Elements) -> None:
    assert all(source.startswith("data:") for source in elements.values("src"))
    for link in elements.values("href"):
        assert link.startswith(("#", "data:", "../../../change/")), link
    assert not re.search(r"https?://|@import|url\(", re.sub(r"data:[^\"]*", "", text))
    assert elements.values("src", "script") == []
    assert elements.values("rel", "link") == ["icon"]


def test_every_link_inside_the_page_has_its_target(elements: Elements) -> None:
    ids = elements.values("id")
    assert len(ids) == len(set(ids))
    inside = [link[1:] for link in elements.values("href") if link.startswith("#")]
    assert len(inside) > 100
    assert set(inside) <= set(ids)


def test_run_folders_are_reached_from_the_page(page: Path, elements: Elements) -> None:
    folders = [unquote(link) for link in elements.values("href", "a") if link.startswith("../")]
    assert len(folders) == 18
    assert all((page.parent / folder / "run.json").is_file() for folder in folders)


def test_every_number_of_the_comparison_leads_to_its_runs(text: str) -> None:
    body = text[text.index('<section id="comparison">') :].split("</tbody>")[0]
    cells = re.findall(r'<td class="number[^>]*>(.*?)</td>', body, flags=re.DOTALL)
    assert len(cells) == 42
    assert all('<a href="#run' in cell for cell in cells)
    assert '<a href="#runs-gated" title="3 runs: ' in body


def test_the_page_tells_protocol_environment_and_differences(text: str) -> None:
    for part in (
        "uint8 0..255",
        "8d1f00c3b7aa",
        "2.14.1",
        "model.fuse",
        "<code>gated</code>",
        "fp-red-fn-cyan",
    ):
        assert part in text


def test_the_page_holds_the_sources_of_the_tables(page: Path, text: str) -> None:
    for kind in ("md", "tex"):
        source = (page.parent / "tables" / f"comparison.{kind}").read_text(encoding="utf-8")
        area = re.search(
            rf'<textarea hidden readonly id="comparison-{kind}">\n(.*?)</textarea>', text, flags=re.DOTALL
        )
        assert area is not None
        unescaped = (
            area[1].replace("&lt;", "<").replace("&gt;", ">").replace("&#34;", '"').replace("&#39;", "'")
        )
        assert unescaped.replace("&amp;", "&") == source


@pytest.mark.usefixtures("no_files")
def test_what_users_wrote_is_escaped(small: Callable[..., Path], tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>"
    file = small((DEMO[0], replace(DEMO[1], title=evil, name='x" onclick="y')))
    edit_json(file, title=evil, question=evil)
    text = write_report(file, tmp_path / "out").read_text(encoding="utf-8")
    assert evil not in text
    assert "&lt;script&gt;alert(1)" in text
    assert all("onclick" not in attributes for _, attributes in Elements(text).all)


@pytest.mark.usefixtures("no_files")
def test_quoted_numbers_are_on_the_page_and_in_no_verdict(small: Callable[..., Path], tmp_path: Path) -> None:
    papers = tmp_path / "papers.yaml"
    papers.write_text(
        "quoted:\n- {method: <BIT>, data: LEVIR-CD, scores: {f1: 89.31}, "
        "source: {title: Chen et al. 2021, arxiv: 2103.00208v3, table: 2}}\n"
    )
    file = small()
    plain = write_report(file, tmp_path / "plain").read_text(encoding="utf-8")
    text = write_report(file, tmp_path / "out", quoted=papers).read_text(encoding="utf-8")
    row = text[text.index('<tr class="quoted">') :].split("</tr>")[0]
    assert "&lt;BIT&gt; †" in row
    assert '<span class="tag">quoted</span>' in row
    assert "89.31" in row
    assert "<a href" not in row
    assert "Quoted from Chen et al. 2021, arXiv:2103.00208v3, table 2; LEVIR-CD, protocol not stated." in text
    verdict = slice(text.index('id="verdict"'), text.index('id="comparison"'))
    assert text[verdict] == plain[plain.index('id="verdict"') : plain.index('id="comparison"')]
    with pytest.raises(InputError, match=r"none\.yaml"):
        write_report(file, tmp_path / "other", quoted=tmp_path / "none.yaml")
    assert not (tmp_path / "other").exists()


def test_the_page_names_the_correction(text: str) -> None:
    assert "5 comparisons with TinyCD together: Holm&#39;s correction" in text
    assert re.search(
        r"95 % interval [^;]*, p [<0-9. ]+, [<0-9. ]+ corrected for 5; 12 images", text.replace("&lt;", "<")
    )


def _study(difference: Difference | None, runs: tuple[Run, ...] = ()) -> Study:
    result = Result((0.8, 0.81), 0.805, 0.007, difference)
    arms = (Arm("base", "base", "r", {}, runs), Arm("gated", "gated fusion", "r", {}, runs, {"f1": result}))
    return Study("i", "t", "q", "test", "whole", "f1", "base", arms)


@pytest.mark.parametrize(
    ("difference", "kind", "sentence"),
    [
        (Difference(0.012, 0.004, 0.02, "better", "images and seeds", 12, (2, 2)), "better",
         "gated fusion is better than base by +1.20 F1 points (95 % interval 0.40 to 2.00; 12 images, 2 seeds)."),
        (Difference(-0.012, -0.02, -0.004, "worse", "images", 12, (1, 1)), "worse",
         "gated fusion is worse than base: −1.20 F1 points (95 % interval −2.00 to −0.40; 12 images, 1 seed)."),
        (Difference(0.012, 0.004, 0.02, "not distinguishable", "images", 12, (2, 2), p=0.03, p_adjusted=0.09, family=3),
         "unclear", "gated fusion cannot be told apart from base: +1.20 F1 points (95 % interval 0.40 to 2.00, p 0.030, "
         "0.090 corrected for 3; 12 images, 2 seeds)."),
        (Difference(0.0, -0.02, 0.02, "not distinguishable", "images and seeds", 12, (2, 3)), "unclear",
         "gated fusion cannot be told apart from base: 0.00 F1 points (95 % interval −2.00 to 2.00; 12 images, "
         "2 against 3 seeds)."),
        (Difference(0.01, None, None, "not distinguishable", "nothing", 1, (2, 2), note="a single image"), "unclear",
         "gated fusion cannot be told apart from base: +1.00 F1 points (no interval; 1 image, 2 seeds)."),
        (Difference(None, None, None, "not distinguishable", "nothing", 9, (2, 2),
                    note="f1 is undefined for 2 of 4 runs"),
         "none", "gated fusion cannot be compared with base: f1 is undefined for 2 of 4 runs."),
        (None, "none", "gated fusion cannot be compared with base: none of its runs finished."),
    ],
)  # fmt: skip
def test_verdicts_are_plain_sentences(difference: Difference | None, kind: str, sentence: str) -> None:
    (verdict,) = verdicts(_study(difference))
    assert (verdict.kind, verdict.text) == (kind, sentence)


def test_cautions_name_failed_blind_and_unequal_runs(small: Callable[..., Path]) -> None:
    file = small((replace(DEMO[0], fails=(1,)), DEMO[5]))
    path = Path(file.parent, json.loads(file.read_text())["arms"][1]["runs"][0]["path"])
    edit_json(path / "run.json", commit="0000+dirty", device="cuda")
    study = open_study(file)
    found = {caution.text: caution.runs for caution in cautions(study)}
    texts = "\n".join(found)
    assert "TinyCD, seed 1 (failed): The loss became NaN" in texts
    blind = next(text for text in found if "predicted 'no change' everywhere" in text)
    assert found[blind] == tuple(run.id for run in study.arm("siamdiff").runs)
    assert "differ in their device: cpu; cuda" in texts
    assert "differ in their code (commit)" in texts
    assert "1 run used code with changes" in texts


def test_a_healthy_study_has_no_cautions(small: Callable[..., Path]) -> None:
    assert cautions(open_study(small())) == []


def test_a_run_still_rising_at_its_end_is_told(small: Callable[..., Path]) -> None:
    file = small()
    path = Path(file.parent, json.loads(file.read_text())["arms"][0]["runs"][0]["path"])
    edit_json(path / "run.json", progress={"best": {"step": 40, "split": "val", "name": "f1", "value": 0.8}})
    lines = [{"step": step, "epoch": 1.0, "split": "val", "protocol": "whole", "name": "f1", "value": step / 99, "time": 1.0}
             for step in (10, 20, 40)]  # fmt: skip
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert "at its best at the last validation in 1 of 2 runs" in cautions(open_study(file))[0].text


@pytest.mark.usefixtures("no_files")
def test_a_study_with_nothing_finished_still_gets_its_page(
    small: Callable[..., Path], tmp_path: Path
) -> None:
    file = small((replace(DEMO[0], fails=(0, 1)), replace(DEMO[1], fails=(0, 1))))
    text = write_report(file, tmp_path / "out").read_text(encoding="utf-8")
    assert "none of its runs finished" in text
    assert "TinyCD, seeds 0, 1 (failed): The loss became NaN" in text
    assert "The loss became NaN at step 212" in text


@pytest.mark.usefixtures("no_files")
def test_a_missing_run_folder_is_told_and_not_fatal(small: Callable[..., Path], tmp_path: Path) -> None:
    file = small()
    arms = json.loads(file.read_text())["arms"]
    arms[0]["runs"][0]["path"] = arms[1]["runs"][0]["path"] = "../../gone"
    edit_json(file, arms=arms)
    text = write_report(file, tmp_path / "out").read_text(encoding="utf-8")
    assert "TinyCD, seed 0 (missing)" in text
    ids = Elements(text).values("id")
    assert len(ids) == len(set(ids))


@pytest.mark.usefixtures("no_files")
def test_run_folders_make_a_report_too(small: Callable[..., Path], tmp_path: Path) -> None:
    file = small()
    runs = [
        Path(file.parent, run["path"]) for arm in json.loads(file.read_text())["arms"] for run in arm["runs"]
    ]
    for path in runs:  # runs of one effective configuration share their hash
        info = json.loads((path / "run.json").read_text())
        edit_json(path / "run.json", hash=info["title"])
    page = write_report(runs, tmp_path / "out")
    table = (page.parent / "tables" / "comparison.md").read_text(encoding="utf-8")
    assert "| TinyCD | 2 |" in table
    assert "| TinyCD, gated fusion | 2 |" in table


@pytest.mark.usefixtures("no_files")
def test_the_same_records_give_the_same_page(small: Callable[..., Path], tmp_path: Path) -> None:
    file = small()
    first = write_report(file, tmp_path / "one").read_bytes()
    assert write_report(file, tmp_path / "two").read_bytes() == first


@pytest.mark.usefixtures("no_files")
def test_bad_input_is_refused_before_anything_is_written(small: Callable[..., Path], tmp_path: Path) -> None:
    file, out = small(), tmp_path / "out"
    with pytest.raises(InputError, match="rainbow"):
        write_report(file, out, convention="rainbow")
    with pytest.raises(InputError, match="no score 'psnr'"):
        write_report(file, out, metric="psnr")
    with pytest.raises(InputError, match="no study"):
        write_report(tmp_path, out)
    with pytest.raises(InputError, match="all of them are run folders"):
        write_report([file, tmp_path], out)
    assert not out.exists()


@pytest.mark.usefixtures("no_files")
def test_another_metric_changes_verdict_and_curves(small: Callable[..., Path], tmp_path: Path) -> None:
    text = write_report(small(), tmp_path / "out", metric="iou").read_text(encoding="utf-8")
    assert "IoU points (95 % interval" in text
    assert "F1 points (95 %" not in text


@pytest.mark.usefixtures("no_files")
def test_the_command_prints_the_page(small: Callable[..., Path], tmp_path: Path) -> None:
    import typer

    app = typer.Typer()
    app.command()(report_verb)
    done = CliRunner().invoke(app, [str(small()), "--out", str(tmp_path / "out"), "--convention", "opencd"])
    assert done.exit_code == 0, done.output
    assert Path(done.output.strip()) == tmp_path / "out" / "report.html"
    assert "<option selected>opencd</option>" in (tmp_path / "out" / "report.html").read_text(
        encoding="utf-8"
    )


def test_reporting_never_imports_torch(small: Callable[..., Path], tmp_path: Path) -> None:
    code = (
        "import sys; from anban.report import write_report; "
        f"write_report({str(small())!r}, {str(tmp_path / 'out')!r}); sys.exit('torch' in sys.modules)"
    )
    assert (
        subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], check=False).returncode
        == 0
    )


@pytest.mark.usefixtures("no_files")
def test_a_single_arm_has_nothing_to_compare(small: Callable[..., Path], tmp_path: Path) -> None:
    file = small((FakeArm("only", "Only", 0.6, "change/only"),))
    assert "nothing to compare it with" in write_report(file, tmp_path / "out").read_text(encoding="utf-8")


@pytest.mark.usefixtures("no_files")
def test_only_an_untitled_base_takes_the_title_of_its_recipe(
    small: Callable[..., Path], tmp_path: Path
) -> None:
    file = small(tuple(replace(arm, title="FC-Siam-diff") for arm in DEMO[:3]))
    arms = json.loads(file.read_text())["arms"]
    edit_json(file, arms=[{**arm, "title": arm["name"]} for arm in arms])
    assert [arm.title for arm in open_study(file).arms] == ["FC-Siam-diff", "gated", "dice"]


@pytest.mark.usefixtures("no_files")
def test_a_failed_run_is_linked_even_if_its_record_is_damaged(
    small: Callable[..., Path], tmp_path: Path
) -> None:
    file = small((replace(DEMO[0], fails=(1,)), replace(DEMO[1], fails=(0,))))
    failed = [
        Path(file.parent, run["path"]).resolve()
        for arm in json.loads(file.read_text())["arms"]
        for run in arm["runs"]
        if run["state"] == "failed"
    ]
    (failed[0] / "run.json").write_text("{")
    page = write_report(file, tmp_path / "out")
    elements = Elements(page.read_text(encoding="utf-8"))
    linked = [
        (page.parent / unquote(link)).resolve() for link in elements.values("href", "a") if ".." in link
    ]
    assert set(failed) <= set(linked)
    assert {f"run-{path.name}" for path in failed} <= set(elements.values("id"))


@pytest.mark.usefixtures("no_files")
def test_split_and_protocol_can_be_chosen(small: Callable[..., Path], tmp_path: Path) -> None:
    import typer

    file = small()
    other = json.loads(file.read_text())["arms"][1]["runs"]
    for run in other:
        path = Path(file.parent, run["path"])
        info = json.loads((path / "run.json").read_text())
        place = {"split": "val", "protocol": "tiles-16"}
        edit_json(
            path / "run.json",
            protocols={
                "val/tiles-16": {**info["protocols"]["test/whole"], "name": "tiles-16", "split": "val"}
            },
            scores=[{**score, **place} for score in info["scores"]],
        )
        lines = [json.loads(line) for line in (path / "samples.jsonl").read_text().splitlines()]
        (path / "samples.jsonl").write_text("".join(json.dumps({**line, **place}) + "\n" for line in lines))
    app = typer.Typer()
    app.command()(report_verb)
    options = ["--split", "val", "--protocol", "tiles-16", "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(app, [str(file), *options])
    assert done.exit_code == 0, done.output
    text = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    why = "not evaluated on &#39;val&#39; under protocol &#39;tiles-16&#39;"
    assert f"no run of {DEMO[0].title} is used" in text
    assert why in text
    assert "4 of 4 runs finished, 2 of them not used" in text
    assert "None of its runs finished" not in text
    # Of plain runs, the first decides.
    table = (
        write_report([Path(file.parent, run["path"]) for run in other], tmp_path / "runs").parent / "tables"
    )
    assert "split val, protocol tiles-16" in (table / "comparison.md").read_text(encoding="utf-8")


def test_arms_in_any_script_keep_their_own_anchors() -> None:
    assert len({slug(name) for name in ("变化", "检测", "été")}) == 3
    assert slug('x" onclick') == "x-onclick"
