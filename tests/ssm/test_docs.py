"""docs/ssm.md says what the code does: its Python runs, its tables are the code's, its figures are all there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from anban.engine.profile import count
from anban.errors import InputError
from anban.ssm import Mamba, selective_scan
from anban.ssm.experiments import Attention, Listen, kept, scene, taught, views
from anban.ssm.figures import FIGURES, MEASURED, main
from anban.ssm.vmamba import CONFIGURATIONS, SS2D, VSSM, forward_types

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "ssm.md").read_text(encoding="utf-8")


def rows(first: str) -> list[list[str]]:
    """The cells of the table whose header begins with `first`."""
    _, _, below = PAGE.partition(f"\n| {first}")
    table = below.partition("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in table]


def test_the_python_on_the_page_runs() -> None:
    torch.manual_seed(0)
    blocks = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
    assert len(blocks) > 10
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, "docs/ssm.md", "exec"), names)


def test_the_table_of_forward_types_is_the_code_s() -> None:
    assert rows("name | meaning") == [[f"`{name}`", meaning] for name, meaning in forward_types()]


def test_the_table_of_published_networks_is_the_code_s() -> None:
    published = [
        [f"`{key}`", c.name, f"{c.parameters} M", f"{c.macs} G"] for key, c in CONFIGURATIONS.items()
    ]
    assert rows("key | name") == published


def size(**changes: object) -> tuple[str, str]:
    """Parameters in millions and multiply-adds in 10^9 of VMamba-T[s1l8] with some arguments changed, as the page writes them."""
    with torch.device("meta"):
        model = VSSM(**{**CONFIGURATIONS["vmambav2v_tiny_224"].arguments, **changes})
        normed = 0

        def add(module: nn.Module, inputs: object, output: torch.Tensor) -> None:
            nonlocal normed
            normed += 5 * output.numel()

        for module in model.modules():
            if isinstance(module, nn.LayerNorm):
                module.register_forward_hook(add)
        macs = count(model, (torch.empty(1, 3, 224, 224),)).macs + normed
    return f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M", f"{macs / 1e9:.2f} G"


def test_the_table_of_ratios_is_the_code_s() -> None:
    table = rows("ssm_ratio, mlp_ratio")
    assert len(table) == 7
    for ratios, *written in table:
        ssm, mlp = (float(part) for part in ratios.removesuffix(" (published)").split(", "))
        assert size(ssm_ratio=ssm, mlp_ratio=mlp) == tuple(written), ratios


def test_the_steps_between_the_releases_have_the_sizes_on_the_page() -> None:
    table = rows("step | depths")
    assert len(table) == 7
    for step, depths, ratio, states, conv, gate, mlp, *written in table:
        first = step.startswith(("a0", "a1"))
        found = size(
            depths=tuple(map(int, depths.split())),
            ssm_ratio=float(ratio),
            ssm_d_state=int(states),
            ssm_conv=3 if conv == "3 × 3" else 1,
            ssm_conv_bias=first,
            forward_type="v05" if gate == "yes" else "v05_noz",
            mlp_ratio=0.0 if mlp == "–" else float(mlp),
            downsample_version="v1" if first else "v3",
            patchembed_version="v1" if first else "v2",
        )
        assert found == tuple(written), step


def test_the_table_of_ss2d_and_attention_is_the_code_s() -> None:
    table = rows("SS2D(96), N = 1")
    pair = SS2D(96, 1, 1.0, forward_type="v05_noz", conv_bias=False), Attention(96, 4)
    for column, side in ((1, 16), (2, 32)):
        x = torch.randn(1, side, side, 96)
        for row, module in enumerate(pair):
            with torch.no_grad(), FlopCounterMode(display=False) as counter:
                assert module(x).shape == x.shape
            macs, size = counter.get_total_flops() / 2e6, kept(module, x) / 2**20
            assert float(table[row][column].removesuffix(" M")) == pytest.approx(macs, rel=0.02)
            # what SS2D keeps depends a little on the backend
            assert float(table[row + 2][column].removesuffix(" MiB")) == pytest.approx(size, rel=0.04)


def test_every_figure_is_drawn_and_shown() -> None:
    shown = set(re.findall(r"\]\(images/ssm/(\w+)\.png\)", PAGE))
    assert shown == {*FIGURES, *MEASURED}
    stored = {file.stem: file.stat().st_size for file in (DOCS / "images" / "ssm").iterdir()}
    assert stored.keys() == shown
    assert max(stored.values()) < 150_000


@pytest.mark.parametrize("name", ["orders", "kernel2d"])
def test_a_figure_drawn_twice_is_the_same(name: str, tmp_path: Path) -> None:
    main(str(tmp_path / "one"), name)
    main(str(tmp_path / "two"), name)
    first, second = ((tmp_path / folder / f"{name}.png").read_bytes() for folder in ("one", "two"))
    assert first == second
    assert len(first) > 10_000


def test_an_unknown_figure_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no figure is called 'horders'.*") as caught:
        main(str(tmp_path), "horders")
    assert "selectivity" in str(caught.value)


# ---- the experiments ---------------------------------------------------------------------------------------------------


def test_selection_is_what_learns_to_keep_and_to_overwrite() -> None:
    image, target = scene(48, 0)
    errors = {}
    for selective in (True, False):
        reader = taught(selective, steps=150, scenes=10)
        with torch.no_grad():
            errors[selective] = (reader(image) - target).square().mean().sqrt()
    assert errors[True] < 0.8 * errors[False]


def test_the_last_roof_is_the_last_roof() -> None:
    image, last = scene(48, 3)
    assert image.shape == (48, 48, 3)
    roof = last[:, 0] > 0
    for column in range(1, 48):
        seen = last[:, column - 1] > 0
        assert (last[:, column] > 0)[seen].all(), "what was seen is told from there on"
        roof |= last[:, column] > 0
    assert roof.any()
    assert not roof.all()


def test_listening_hears_the_scans_of_a_network_and_changes_nothing() -> None:
    mixer, tokens = Mamba(8, bimamba_type="v2"), torch.randn(1, 5, 8)
    with torch.no_grad():
        expected = mixer(tokens)
        with Listen() as listener:
            torch.testing.assert_close(mixer(tokens), expected, rtol=0, atol=0)
    assert [given[0].shape for given in listener.heard] == [(1, 1, 5, 16)] * 2


def test_what_autograd_keeps() -> None:
    u = torch.randn(1, 4, 1000)
    assert kept(lambda x: x * 2, u) == 0
    assert kept(lambda x: x * x, u) == u.nbytes
    attention = views(4, 2)["attention"]
    assert kept(attention, u) > 1000 * 1000 * 4
    scan = kept(lambda x: selective_scan(x, x, -torch.ones(4, 2), *torch.randn(2, 4, 2)), u)
    assert scan < 2 * u.nbytes + 4 * 2 * (1000 // 16 + 1) * 64


def test_the_views_of_the_page_are_one_function() -> None:
    found, u = views(4, 3), torch.randn(1, 4, 50)
    with torch.no_grad():
        expected = found["recurrence"](u)
        for name in ("convolution (FFT)", "parallel scan"):
            torch.testing.assert_close(found[name](u), expected, rtol=1e-4, atol=1e-5)
