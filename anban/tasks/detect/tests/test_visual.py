"""Attention over pictures, networks as lists of stages, where the gradient goes, and the page of a data set."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from typer.testing import CliRunner

from anban.cli.main import app
from anban.engine.probe import draw as draw_probe
from anban.engine.probe import probe
from anban.engine.run import prepare
from anban.engine.stages import side_by_side, stages
from anban.errors import InputError
from anban.recipe import load_recipe
from anban.tasks.detect import attention as tool
from anban.tasks.detect.browse import browse
from anban.tasks.detect.demo import write_demo
from anban.tasks.detect.models.attention import ATTENTION, AnyAttention
from anban.tasks.detect.models.attention.layers import Axial
from anban.tasks.detect.models.pvt import PVT
from anban.tasks.detect.models.retinanet import PVTRetinaNet
from anban.tasks.detect.models.settings import Attention, Detector, Dilation, Kind, Pyramid
from anban.tasks.detect.task import DetectTask

SMALL: dict[str, Any] = {
    "widths": (8, 16),
    "depths": (2, 1),
    "heads": (2, 2),
    "mlp_ratios": (2.0, 2.0),
    "patch_sizes": (4, 2),
    "patch_strides": (4, 2),
    "paddings": (0, 0),
    "outputs": (0, 1),
    "image_size": (32, 32),
}


def detector(**changes: Any) -> PVTRetinaNet:
    torch.manual_seed(0)
    attention = changes.pop("attention", Attention(reductions=(2, 1)))
    pyramid = Pyramid(**{**SMALL, **changes}, attention=attention)
    network = PVTRetinaNet(3, pyramid, Detector(width=8, depth=1, extra_levels=1, first_stage=0, anchor_sizes=(8, 16, 32)))  # fmt: skip
    return network.eval()


def image(height: int = 32, width: int = 32) -> Tensor:
    return torch.randn(1, 3, height, width, generator=torch.Generator().manual_seed(1))


def printed(*words: object, code: int = 0) -> str:
    done = CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=False)
    assert done.exit_code == code, done.output
    return done.output


def size_of(file: Path) -> tuple[int, int]:
    with Image.open(file) as picture:
        return picture.size


@pytest.fixture(scope="module")
def cells(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_demo(tmp_path_factory.mktemp("cells"), train=4, val=2, test=2, size=64)


# ---- attention -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ATTENTION)
def test_the_weights_of_every_kind_are_those_of_the_pass(kind: Kind) -> None:
    """What a block reads from its values by the weights that are drawn is what its attention puts out in the network."""
    network = detector(attention=Attention(kind, reductions=(2, 1), pool=3, buckets=4))
    encoder = network.encoder
    assert isinstance(encoder, PVT)
    layer: AnyAttention = encoder.stages[0].blocks[1].attention  # type: ignore[assignment, index, union-attr]
    put_out: list[Tensor] = []
    hook = layer.register_forward_hook(lambda _, __, output: put_out.append(output))
    (call,) = tool._inputs(encoder, [layer], image())
    hook.remove()
    rebuilt = sum(
        one._join(one.weights(*call) @ one._project(*call)[2])
        for one in ((layer.row, layer.column) if isinstance(layer, Axial) else (layer,))
    )
    torch.testing.assert_close(rebuilt, put_out[0], atol=1e-5, rtol=1e-4)
    seen = tool.look(network, image(), 0, 1, [(9.0, 17.0)])
    visible = layer.seen(*call)
    if visible is None:
        assert seen.visible.all()
    else:
        rows = visible[0] if visible.ndim == 4 else visible.expand(2, -1, -1)
        assert np.array_equal(seen.visible[:, 0], rows[:, seen.queries[0]].numpy())
        assert not seen.visible.all()
        assert not seen.weights[~seen.visible].any()
    for shown in (seen.weights, seen.received):
        np.testing.assert_allclose(shown.sum(axis=-1), 1, atol=1e-5)
    np.testing.assert_allclose(seen.rollout.sum(axis=-1), 1, atol=1e-5)


def test_rollout_worked_by_hand() -> None:
    network = detector(attention=Attention("full", reductions=(1, 1)))
    encoder = network.encoder
    layers = [block.attention for block in encoder.stages[0].blocks]  # type: ignore[union-attr, index]
    mixed = torch.eye(64)
    for layer, call in zip(layers, tool._inputs(encoder, layers, image()), strict=True):
        mixed = (torch.eye(64) + layer.weights(*call)[0].mean(dim=0)) / 2 @ mixed
    seen = tool.look(network, image(), 0, 1, [(1.0, 1.0)])
    np.testing.assert_allclose(seen.rollout[0], mixed[0].detach().numpy(), atol=1e-6)


def test_keys_of_a_reduced_map_lie_where_they_are_made_from() -> None:
    """A query that attends to one key lights up the tokens that the key's convolution joins, and no token left over."""
    network = detector(attention=Attention("reduced", reductions=(3, 1)), depths=(1, 1))
    seen = tool.look(network, image(), 0, 0, [(0.0, 0.0)])  # a map of 8x8, keys of 2x2
    weights = seen.weights[0, 0].reshape(8, 8)
    assert np.ptp(weights[:3, :3]) < 1e-9
    assert abs(weights[:3, :3].sum() + weights[3:6, :3].sum() + weights[:3, 3:6].sum() + weights[3:6, 3:6].sum() - 1) < 1e-5  # fmt: skip
    assert weights[6:].max() == weights[:, 6:].max() == 0
    assert not seen.visible.reshape(-1, 8, 8)[:, 6:].any()
    layer = network.encoder.stages[0].blocks[0].attention  # type: ignore[union-attr, index]
    origins = layer.origins((8, 8))
    assert origins.shape == (4, 64)
    torch.testing.assert_close(origins.sum(dim=1), torch.ones(4))


def test_pooled_keys_are_the_means_that_the_layer_takes() -> None:
    network = detector(attention=Attention("pooled", reductions=(1, 1), pool=3))
    layer = network.encoder.stages[0].blocks[0].attention  # type: ignore[union-attr, index]
    x = torch.randn(1, 8, 5, 7)
    pooled = nn.functional.adaptive_avg_pool2d(x, 3).flatten(2)
    torch.testing.assert_close(x.flatten(2) @ layer.origins((5, 7)).T, pooled)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"patch_sizes": (7, 3), "paddings": (3, 1)},
        {"patch_sizes": (5, 3), "paddings": ("same", "same")},
        {"entry": "linear"},
        {"dilation": Dilation("between", (0, 1))},
        {"dilation": Dilation("between", (0, 1), "shrinking")},
    ],
    ids=str,
)
def test_tokens_lie_where_the_network_sees_them(changes: dict[str, Any]) -> None:
    """The pixels that a token of the second stage is made from lie about where it is drawn."""
    if changes.get("entry") == "linear":
        changes = {**changes, "depths": (0, 0)}
    encoder = PVT(Pyramid(**{**SMALL, **changes, "depths": (0, 1)}, attention=Attention(reductions=(1, 1))))
    encoder.eval()
    picture = image(96, 96).requires_grad_()
    layers = [encoder.stages[1].blocks[0].attention]  # type: ignore[union-attr, index]
    ((_, size),) = tool._inputs(encoder, layers, picture)
    grid = tool._grid(encoder, 1, picture, size)
    row, column = size[0] // 2, size[1] // 3
    x = encoder.stages[1]._embedded(encoder.stages[0](picture))[0]  # type: ignore[operator, union-attr]
    (gradient,) = torch.autograd.grad(x[0, row * size[1] + column].square().sum(), picture)
    weight = gradient.abs().sum(dim=(0, 1)) > 0
    places = torch.nonzero(weight).double() + 0.5
    middle = (places.min(dim=0).values + places.max(dim=0).values) / 2
    expected = torch.tensor([grid.first[0] + row * grid.stride, grid.first[1] + column * grid.stride])
    torch.testing.assert_close(middle, expected.double(), atol=0.01, rtol=0)
    assert grid.at(float(expected[1]), float(expected[0])) == row * size[1] + column


def test_the_command_draws_over_the_picture_and_refuses_what_is_not_there(
    cells: Path, tmp_path: Path
) -> None:
    picture = next((cells / "images" / "test").glob("*.png"))
    words = ["attention", "det/demo-pvt", picture, "model.backbone.attention.kind=strided", "--out", tmp_path]
    lines = printed(*words, "--stage", 1, "--query", "10,20", "--query", "50,50").splitlines()
    assert [Path(line).name for line in lines] == [
        f"{picture.stem}-stage1-block0-{name}.png" for name in ("queries", "received", "rollout")
    ]
    sides = {Path(line).stem.rpartition("-")[2]: size_of(Path(line)) for line in lines}
    assert sides["queries"][0] == sides["received"][0]  # a column for each of two heads
    assert sides["queries"][1] > 1.5 * sides["received"][1]  # a row for each of two queries
    for options, says in (
        (["--stage", 7], "no stage 7"),
        (["--block", 3], "no block 3"),
        (["--head", "5"], "no head 5"),
        (["--head", "best"], "no head 'best'"),
        (["--query", "64,0"], "outside of the picture"),
        (["--query", "middle"], "no point"),
    ):
        with pytest.raises(InputError, match=says):
            printed(*words, *options)
    with pytest.raises(InputError, match="no drawing of this network's attention"):
        printed("attention", "change/demo-tinycd", picture, "--out", tmp_path)


def test_a_backbone_without_such_stages_and_a_matrix_too_large_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(InputError, match="cannot be drawn"):
        tool.look(nn.Identity(), image(), 0, 0, [(0.0, 0.0)])
    monkeypatch.setattr(tool, "_MOST_BYTES", 1000)
    with pytest.raises(InputError, match="smaller picture"):
        tool.look(detector(), image(), 0, 0, [(0.0, 0.0)])


# ---- stages --------------------------------------------------------------------------------------------------------

NOTE = ("det/2022-0523-pvt-original", "det/2022-0523-atrous-current", "det/2022-0523-planned")


def test_the_note_s_networks_stand_side_by_side() -> None:
    found = json.loads(printed("stages", *NOTE, "--size", 64, "--json"))
    by_id = {network["id"]: network["stages"] for network in found}
    second = {name: stages["encoder.stages.1"]["entries"]["written"] for name, stages in by_id.items()}
    assert second == {
        NOTE[0]: "[[patch 2/2, pos], reduced 128 [layer1, layer2]]",
        NOTE[1]: "[full 64 [layer1, layer2], norm]",
        NOTE[2]: "[[reshape, linear], full 64 [layer1, layer2]]",
    }
    for network in by_id.values():
        parts = [part for name, part in network.items() if name != "total"]
        for cost in ("parameters", "macs"):
            assert sum(part[cost] for part in parts) == network["total"][cost] > 0
    rows = {(row.part, row.entry): row for row in side_by_side([by_id[NOTE[1]], by_id[NOTE[2]]])}
    assert rows["encoder.stages.0", "begins with"].texts == ["patch 5/5", "patch 4/4"]
    assert rows["encoder.stages.0", "begins with"].differs
    assert not rows["encoder.stages.0", "attention"].differs
    assert rows["encoder.stages.1", "position embedding"].texts == ["none", "none"]


def test_the_table_marks_what_differs() -> None:
    lines = printed("stages", NOTE[1], "det/2022-0617-retinanet-pvt-t-fpn-1x", "--size", 64).splitlines()
    attention = next(line for line in lines if " attention " in line)
    assert attention.startswith("*")
    assert re.search(r"full, 1 head +reduced by 8, 1 head$", attention)
    assert any(line.lstrip().startswith("layers") and line.startswith(" ") for line in lines)
    differing = printed("stages", NOTE[1], NOTE[1], "--size", 64, "--differing").splitlines()
    assert len(differing) == 3  # the size, an empty line, the heading


def test_parts_are_those_of_any_network() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU())
    found = stages(network, (torch.zeros(1, 3, 8, 8),))
    assert list(found) == ["0", "1", "total"]
    assert found["0"] == {"entries": {"consists of": "Conv2d"}, "shapes": [[1, 4, 8, 8]], "parameters": 112,
                          "macs": 4 * 27 * 64}  # fmt: skip


# ---- the probe -----------------------------------------------------------------------------------------------------


def prepared(cells: Path, *changes: str) -> tuple[DetectTask, Any]:
    small = [
        "model.backbone.depths=[1,1,1,1]",
        "train.batch_size=2",
        "model.detector.width=16",
        "train.clip_norm=null",
    ]
    recipe = load_recipe("det/demo-pvt", [f"data.root={cells}", *small, *changes])
    return prepare(recipe, torch.device("cpu"))  # type: ignore[return-value]


def test_a_healthy_recipe_is_told_to_learn(cells: Path) -> None:
    seen = probe(*prepared(cells), steps=8)
    assert seen.verdict.startswith("the loss falls")
    assert seen.findings == []
    assert list(seen.flows) == [*(f"encoder.stages.{stage}" for stage in range(4)), "neck", "head"]
    for flow in seen.flows.values():
        assert len(flow.norms) == 2
        assert min(flow.ratios) > 1e-6
    assert min(seen.flows[f"encoder.stages.{stage}"].places or 0 for stage in range(4)) > 1e-3
    figure = draw_probe(seen)
    assert len(figure.axes[0].patches) == 2 * len(seen.flows)


def test_a_gradient_that_is_cut_is_told(cells: Path) -> None:
    task, loop = prepared(cells)
    encoder = task.modules["model"].encoder
    encoder.stages[1].register_forward_hook(lambda _, __, output: output.detach())  # type: ignore[index, union-attr]
    seen = probe(task, loop, steps=2)
    errors = [finding["what"] for finding in seen.findings if finding["level"] == "error"]
    assert [re.sub(r" \(.*", "", what) for what in errors] == [
        "no gradient reaches encoder.stages.0",
        "no gradient reaches encoder.stages.1",
    ]
    assert seen.flows["encoder.stages.2"].norms[0] > 0


def test_stages_without_positions_are_told(cells: Path) -> None:
    full = "model.backbone.attention.kind=full"
    blind = probe(*prepared(cells, full, "model.backbone.positions=none"), steps=1)
    (finding,) = [finding for finding in blind.findings if "trade places" in finding["what"]]
    assert finding["level"] == "warning"
    assert "position embeddings" in finding["do"]
    first = probe(*prepared(cells, full, "model.backbone.positions=first"), steps=1)
    (finding,) = [finding for finding in first.findings if "trade places" in finding["what"]]
    assert finding["level"] == "info"
    assert "encoder.stages.0" not in finding["what"]


def test_a_loss_that_does_not_fall_is_told(cells: Path) -> None:
    still = probe(*prepared(cells, "optimizer.lr=1e-12"), steps=3)
    assert still.verdict.startswith("the loss hardly moves")
    assert still.findings[0]["level"] == "warning"


def test_the_doctor_takes_a_recipe(cells: Path, tmp_path: Path) -> None:
    words = [
        "doctor",
        "det/demo-pvt",
        f"data.root={cells}",
        "train.batch_size=2",
        "--steps",
        2,
        "--out",
        tmp_path,
    ]
    found = json.loads(printed(*words, "--json"))
    assert json.loads((tmp_path / "probe.json").read_text(encoding="utf-8")) == found
    assert found["loss"]["steps"] == 2
    assert found["parts"]["neck"]["parameters"] > 0
    assert size_of(tmp_path / "probe.png")[0] > 500
    assert "encoder.stages.3" in printed(*words)
    with pytest.raises(InputError, match="of recipes"):
        printed("doctor", cells, "train.batch_size=2")


# ---- the page of a data set ----------------------------------------------------------------------------------------


def embedded(page: Path) -> list[dict[str, Any]]:
    text = page.read_text(encoding="utf-8")
    found = re.search(r'<script type="application/json" id="items">(.*?)</script>', text, re.DOTALL)
    assert found is not None
    items: list[dict[str, Any]] = json.loads(found[1])
    return items


def test_a_page_shows_pictures_with_what_they_are_filtered_by(tmp_path: Path) -> None:
    root = write_demo(tmp_path / "cells", train=3, val=2, test=0, size=64)
    file = root / "annotations" / "train.json"
    content = json.loads(file.read_text(encoding="utf-8"))
    spoiled = content["images"][1]
    content["annotations"].append({"id": 9999, "image_id": spoiled["id"], "category_id": content["categories"][0]["id"],
                                   "bbox": [5, 5, 0, 4], "area": 0, "iscrowd": 0})  # fmt: skip
    content["categories"][0]["name"] = "</script><b>disc"
    file.write_text(json.dumps(content), encoding="utf-8")
    val = root / "annotations" / "val.json"
    val.write_text(val.read_text(encoding="utf-8").replace('"disc"', '"</script><b>disc"'), encoding="utf-8")
    out = tmp_path / "out"
    printed("data", f"My cells={root}", "--task", "detect", "--out", out, "--page")
    items = embedded(out / "My cells.html")
    assert [item["split"] for item in items] == ["train"] * 3 + ["val"] * 2
    assert items[0]["picture"].startswith("data:image/jpeg;base64,")
    faulty = [item for item in items if "faulty box" in item["tags"]["finding"]]
    assert [item["name"] for item in faulty] == [spoiled["file_name"]]
    assert "no area" in faulty[0]["notes"][0]
    counted = sum(item["numbers"]["objects"] for item in items)
    assert counted == sum(len(json.loads((root / "annotations" / f"{s}.json").read_text())["annotations"])
                          for s in ("train", "val")) - 1  # fmt: skip
    text = (out / "My cells.html").read_text(encoding="utf-8")
    assert "</script><b>" not in text
    assert "&lt;/script&gt;&lt;b&gt;disc" in text
    assert "http" not in re.sub(r"<script type=.*?</script>", "", text, flags=re.DOTALL).replace(
        "http-equiv", ""
    )


def test_a_page_is_bounded_and_keeps_what_is_faulty(cells: Path, tmp_path: Path) -> None:
    browsed = browse({"root": cells, "layout": "auto"}, 3)
    assert (len(browsed.items), browsed.total) == (3, 8)
    assert len({item.split for item in browsed.items}) > 1
    assert max(browsed.items[0].picture.shape) <= 320
    counts = {(row[0], row[1]): row[2] for row in browsed.table[1:]}
    assert {name for name, _ in counts} == {"disc", "ring", "rod"}
    (cells_copy := tmp_path / "copy").mkdir()
    (cells_copy / "annotations").symlink_to(cells / "annotations")
    (cells_copy / "images").mkdir()
    for split in ("train", "val", "test"):
        (cells_copy / "images" / split).mkdir()
        for picture in (cells / "images" / split).iterdir():
            (cells_copy / "images" / split / picture.name).write_bytes(picture.read_bytes())
    broken = next((cells_copy / "images" / "val").iterdir())
    broken.write_bytes(broken.read_bytes()[:60])
    items = {
        f"{item.split}/{item.name}": item
        for item in browse({"root": cells_copy, "layout": "auto"}, 100).items
    }
    assert "unreadable" in items[f"val/{broken.name}"].tags["finding"]
    assert items[f"val/{broken.name}"].notes
