"""STNet drawn: the drawing, the level table and the figures say what the model is, in the words and colours agreed."""

from __future__ import annotations

import colorsys
import copy
import csv
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any, cast

import matplotlib
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.patches import Patch
from PIL import Image

import anban
from anban.cli.draw import draw
from anban.engine.profile import count
from anban.errors import InputError
from anban.tasks.change.models.stnet import STNet, drawing, figures
from anban.tasks.change.models.stnet.drawing import levels
from anban.tasks.change.models.stnet.drawing.canvas import STYLE, Canvas
from anban.tasks.change.models.stnet.drawing.detail import response
from anban.tasks.change.models.stnet.enhancement import FirstOrder, SecondOrder

SMALL: dict[str, Any] = {"dims": 8, "depths": [1, 1, 1, 1]}
CASES: dict[str, dict[str, Any]] = {
    "complete": {},
    "shared": {"encoder": {"sharing": "all"}},
    "half": {"encoder": {"sharing": "low", "low_levels": 2, "integration": "cama"}},
    "apart": {"encoder": {"integration": "none", "difference": "none"}},
    "bare": {"enhancement": {"levels": 0}, "decoder": {"trunk": []}},
    "first": {"decoder": {"head": "difference", "difference_fusion": True}, "enhancement": {"levels": 0}},
    "turned": {
        "encoder": {"branch": "cnn", "merging": "none", "scale": "none"},
        "decoder": {
            "head": "separate-trunk",
            "order": "scan-first",
            "residual": "bn",
            "deep_supervision": True,
        },
        "enhancement": {"levels": 4, "first_order": ["pair", "fused"], "scan": "before", "operator": "dog"},
    },
    "below": {
        "decoder": {"skip": "none", "head": "shared-trunk", "upsampling": "extra-level"},
        "enhancement": {"first_order": ["fused"], "second_order": [], "product": False, "mlp": False},
    },
    "aernet": {"decoder": {"skip": "aernet", "add_input": False}, "aff": {"resize": True}},
    "attention": {
        "decoder": {"skip": "aff"},
        "enhancement": {"second_order": ["difference"], "block": "trunk"},
    },
    "mamba": {"decoder": {"skip": "change-mamba", "widths": "smallest"}, "enhancement": {"light_levels": 0}},
}


def make(case: str = "complete") -> STNet:
    torch.manual_seed(0)
    return cast(STNet, anban.create_model("change/stnet", **SMALL, **CASES[case]))


def measured(model: STNet, size: int = 64) -> tuple[dict[str, levels.Part], list[levels.Row]]:
    parts = levels.measure(model, tuple(torch.empty(2, 1, levels.bands(model), size, size)))
    return parts, levels.rows(model, parts)


@pytest.fixture(scope="module")
def tables() -> dict[str, tuple[STNet, dict[str, levels.Part], list[levels.Row]]]:
    return {case: (model, *measured(model)) for case, model in ((case, make(case)) for case in CASES)}


@pytest.fixture(scope="module")
def sheets(tables: dict[str, tuple[STNet, dict[str, levels.Part], list[levels.Row]]]) -> dict[str, Canvas]:
    with matplotlib.rc_context(STYLE):
        return {case: drawing.sheet(*table) for case, table in tables.items()}


def names(canvas: Canvas) -> list[str]:
    return [gid for artist in canvas.axes.get_children() if (gid := artist.get_gid())]


# ---- the drawing -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES)
def test_words_follow_the_rules(case: str, sheets: dict[str, Canvas]) -> None:
    words = [text.get_text() for text in sheets[case].axes.texts]
    banned = (
        r"effective|multi-?\s?scale|multi-?d\b|multi-?task|pre-?change|adapt(ed|ive)|integrate\b|\bedge\b"
    )
    assert [word for word in words if re.search(banned, word, re.IGNORECASE)] == []
    orders = [word for word in words if re.search(r"(first|second)-order", word)]
    assert [word for word in orders if not re.search(r"order\s+derivative operator", word)] == []
    assert {"SISS", "level 4", "image a", "image b"} <= {*words}


def test_words_stay_words_in_the_file(sheets: dict[str, Canvas], tmp_path: Path) -> None:
    with matplotlib.rc_context(STYLE):
        svg, pdf, _ = sheets["complete"].save(tmp_path, "network")
    written = "".join(text.text or "" for text in ET.parse(svg).iter("{http://www.w3.org/2000/svg}text"))
    for text in sheets["complete"].axes.texts:
        assert all(line in written for line in text.get_text().split("\n"))
    assert pdf.read_bytes().startswith(b"%PDF")


@pytest.mark.parametrize("case", CASES)
def test_nothing_overlaps(case: str, sheets: dict[str, Canvas]) -> None:
    canvas = sheets[case]
    renderer = FigureCanvasAgg(canvas.figure).get_renderer()
    texts = [(t, t.get_window_extent(renderer)) for t in canvas.axes.texts if t.get_text()]
    for i, (text, extent) in enumerate(texts):
        assert extent.x0 >= 0, text
        assert extent.x1 <= canvas.figure.bbox.x1, text
        assert [other.get_text() for other, there in texts[i + 1 :] if extent.overlaps(there)] == [], text
    patches = {patch.get_gid(): patch for patch in canvas.axes.patches}
    boxes = []
    for text, extent in texts:
        if (text.get_gid() or "").endswith("-text"):
            box = patches[text.get_gid().removesuffix("-text")].get_window_extent(renderer)
            assert (
                min(extent.x0 - box.x0, box.x1 - extent.x1, extent.y0 - box.y0, box.y1 - extent.y1) > -0.5
            ), text
            boxes.append((text.get_text(), box))
    for i, (name, box) in enumerate(boxes):
        assert [other for other, there in boxes[i + 1 :] if box.overlaps(there)] == [], name
    assert len(names(canvas)) == len(set(names(canvas)))


@pytest.mark.parametrize(("case", "shared"), [("complete", 0), ("half", 2), ("shared", 4)])
def test_the_ways_of_the_dates_follow_the_sharing(case: str, shared: int, sheets: dict[str, Canvas]) -> None:
    drawn = names(sheets[case])
    for level in range(1, 5):
        ways = {name.split("-")[3] for name in drawn if name.startswith(f"level-{level}-way-")}
        assert ways == ({"shared"} if level <= shared else {"a", "b"})
        for date in "ab":  # a line through every level, and one to the decoder
            assert f"level-{level}-date-{date}-way" in drawn
            assert f"level-{level}-date-{date}-across" in drawn


def test_integration_and_difference_are_drawn_where_they_are(sheets: dict[str, Canvas]) -> None:
    complete, apart = names(sheets["complete"]), names(sheets["apart"])
    for level in range(1, 5):
        for name in (f"level-{level}-integration", f"level-{level}-date-a-integration"):
            assert name in complete
            assert name not in apart
        assert f"level-{level}-date-a-apart" in apart
    assert not [name for name in apart if "integration" in name]
    # Without the encoder's block the enhancement takes |a - b| as it is; the trunk takes none.
    assert ["level-1-ddb" in apart, "level-4-ddb" in apart] == [True, False]
    assert "|a − b|" in [text.get_text() for text in sheets["apart"].axes.texts]


def test_the_enhancement_is_drawn_with_its_operators(sheets: dict[str, Canvas]) -> None:
    drawn = names(sheets["complete"])
    assert [f"level-{level}-edss" in drawn for level in range(1, 5)] == [True, True, True, False]
    assert {"detail-first-order", "detail-second-order", "level-1-a-edss", "level-1-difference-edss"} <= {
        *drawn
    }
    assert not [name for name in names(sheets["bare"]) if "edss" in name or "order" in name]
    below = names(sheets["below"])
    assert "detail-second-order" not in below
    assert "level-1-ab-fusion" in below
    assert "difference-fusion" in names(sheets["first"])


@pytest.mark.parametrize("case", CASES)
def test_yellow_is_mamba_and_nothing_else(case: str, sheets: dict[str, Canvas]) -> None:
    def yellow(colour: Any) -> bool:
        hue, lightness, saturation = colorsys.rgb_to_hls(*to_rgb(colour))
        return 40 <= 360 * hue <= 70 and saturation > 0.2 and lightness < 0.98

    patches = [patch for patch in sheets[case].axes.patches if isinstance(patch, Patch)]
    found = {
        patch.get_gid() for patch in patches if yellow(patch.get_facecolor()) and patch.get_facecolor()[3]
    }
    assert found == {name for name in names(sheets[case]) if re.search(r"vss(-\d+)*$", name)}
    assert "level-1-way-a-vss" in found or case not in ("complete", "apart")


def test_the_same_bytes_every_time(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("one", "two")]
    for folder in folders:
        folder.mkdir()
        drawing.draw(make(), folder, 64)
    files = sorted(path.name for path in folders[0].iterdir())
    assert files == ["levels.csv", "levels.md", "levels.tex", "network.pdf", "network.png", "network.svg"]
    for name in files:
        assert (folders[0] / name).read_bytes() == (folders[1] / name).read_bytes(), name


def test_kernels_are_what_the_operators_answer() -> None:
    across, down = response(FirstOrder())
    assert across.shape == (3, 3)
    assert torch.equal(across, down.T)
    assert across[1].tolist() == [-1, 0, 1]
    for kind, reach in (("laplacian", 7), ("dog", 9)):
        (kernel,) = response(SecondOrder(kind, 4, bias=True))  # type: ignore[arg-type]
        assert kernel.shape == (reach, reach)
        assert kernel.sum().item() == pytest.approx(0, abs=1e-4)
        assert torch.allclose(kernel, kernel.T, atol=1e-5)


def test_a_size_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="a multiple of 32"):
        drawing.draw(make(), tmp_path, 100)


# ---- the table -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES)
def test_the_table_sums_to_the_model(
    case: str, tables: dict[str, tuple[STNet, dict[str, levels.Part], list[levels.Row]]]
) -> None:
    model, _, (*rows, total) = tables[case]
    assert total.whole.parameters == sum(p.numel() for p in model.parameters())
    assert sum(row.whole.parameters for row in rows) == total.whole.parameters
    assert [row.size for row in rows[:4]] == [(8, 16, 16), (16, 8, 8), (32, 4, 4), (64, 2, 2)]
    images = torch.zeros(2, 1, 3, 64, 64, device="meta")
    assert total.whole.macs == count(copy.deepcopy(model).to("meta"), tuple(images)).macs


def test_the_table_as_files(tmp_path: Path) -> None:
    model = make("half")
    levels.write(measured(model)[1], tmp_path)
    with (tmp_path / "levels.csv").open(encoding="utf-8") as file:
        first, *_, total = list(csv.DictReader(file))
    assert first["encoder blocks"] == "stem; VSS × 1 (shared); CaMa; DDB"
    assert first["decoder blocks"] == "fusion; VSS, channel; VSS, spatial; EDSS; AFF"
    assert int(total["encoder parameters"]) == sum(p.numel() for p in model.encoder.parameters())
    lines = (tmp_path / "levels.md").read_text(encoding="utf-8").splitlines()
    assert {line.count("|") for line in lines} == {10}
    latex = (tmp_path / "levels.tex").read_text(encoding="utf-8")
    assert {line.count(" & ") for line in latex.splitlines() if line.endswith(r"\\")} == {8}
    assert "×" not in latex


# ---- the figures -----------------------------------------------------------------------------------------------------


def pairs(size: int = 64) -> list[figures.Pair]:
    a, b = torch.randint(
        0, 256, (2, 3, size, size), generator=torch.Generator().manual_seed(0), dtype=torch.uint8
    )
    return [(a, b)]


def test_integration_makes_the_other_date_seen() -> None:
    model = make("shared").eval()
    together = figures.field(figures.settled(model, pairs()), pairs())
    apart = figures.field(figures.settled(figures.apart(model), pairs()), pairs())
    assert together.shape == apart.shape == (2, 64, 64)
    assert apart[1].max() == 0
    assert together[1].sum() > 0.05 * together.sum()
    assert figures.extent(together) > figures.extent(apart)
    assert model.encoder.levels[0].integration is not None  # it was a copy


def test_the_extent_is_the_smallest_part_that_holds_the_share() -> None:
    gradient = torch.zeros(10, 10)
    assert figures.extent(gradient) == 0
    gradient[:2] = 1.0
    assert figures.extent(gradient, 0.5) == 0.1
    gradient[5, 5] = 1e6
    assert figures.extent(gradient, 0.5) == 0.01


def test_derivatives_are_those_of_the_operators() -> None:
    model = make().eval()
    found = figures.derivatives(model, *pairs()[0])
    assert [level.level for level in found] == [0, 1, 2]
    assert [name[0] for name in found[0].maps] == ["first-order"] * 2 + ["second-order"] * 2
    assert found[1].addition.shape == (8, 8)
    # Without a slope anywhere there is no derivative.
    flat = torch.full((3, 64, 64), 124, dtype=torch.uint8)
    for parameter in model.encoder.parameters():
        torch.nn.init.zeros_(parameter)
    for level in figures.derivatives(model, flat, flat):
        assert all(values.abs().max() < 1e-6 for values in level.maps.values())


def test_pictures_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    for name, size in (("a", (64, 64)), ("b", (64, 96)), ("c", (16, 64))):
        Image.new("RGB", size).save(tmp_path / f"{name}.png")
    for given, message in (("a", "Found 1 pictures"), ("ab", "of one size"), ("cc", "at least 32")):
        with pytest.raises(InputError, match=message):
            figures.draw(make(), tmp_path, [tmp_path / f"{name}.png" for name in given])
    torch.manual_seed(0)
    with pytest.raises(InputError, match="4 bands"):
        figures.draw(STNet(**SMALL, in_chans=4), tmp_path, [tmp_path / "a.png"] * 2)


# ---- the command -----------------------------------------------------------------------------------------------------


def test_the_command_draws_a_network_and_what_it_sees(demo_data: Path, tmp_path: Path) -> None:
    images = [str(item) for date in "AB" for item in ("--image", demo_data / "test" / date / "test_0000.png")]
    small = ["model.dims=8", "model.depths=[1,1,1,1]", "--size", "64"]
    command = [sys.executable, "-m", "anban", "draw", "change/stnet", *small, "--out", str(tmp_path / "out")]
    done = subprocess.run(
        [*command, "--figures", *images], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    assert {Path(line).name for line in done.stdout.splitlines()} == {
        *("network.svg", "network.pdf", "network.png", "levels.md", "levels.tex", "levels.csv"),
        *("receptive-field.png", "receptive-field.pdf", "derivatives.png", "derivatives.pdf"),
    }
    assert all(Path(line).stat().st_size for line in done.stdout.splitlines())
    with Image.open(tmp_path / "out" / "derivatives.png") as picture:
        assert picture.width > 1000


def test_the_command_draws_a_recipe_with_changes(tmp_path: Path) -> None:
    draw(
        "change/levir-stnet-lite",
        overrides=["model.dims=8", "model.depths=[1,1,1,1]", "model.encoder.integration=none"],
        out=tmp_path,
    )
    svg = (tmp_path / "network.svg").read_text(encoding="utf-8")
    assert "8 × 64 × 64" in svg
    assert "level-1-way-shared-vss" in svg
    assert "level-1-integration" not in svg


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("change/tinycd", {}, r"no drawing of this network, TinyCD(.|\n)*change/stnet"),
        ("change/stnet", {"overrides": ["model.dimms=8"]}, r"model\.dimms(.|\n)*dims"),
        ("change/stnet", {"overrides": ["dims=8"]}, r"'dims'(.|\n)*model\."),
        ("change/stnet", {"image": [Path("a.png")]}, "add --figures"),
    ],
)
def test_what_cannot_be_drawn_is_refused(
    name: str, options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message):
        draw(name, out=tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()
