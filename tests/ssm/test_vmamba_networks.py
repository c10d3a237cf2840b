"""VSS blocks, VSSM, its backbone form: what they share, sizes, weights, the published configurations."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from anban.engine.profile import count
from anban.errors import InputError
from anban.official import load_official
from anban.ssm.vmamba import CONFIGURATIONS, SS2D, VSSM, VSSBlock, VSSMBackbone
from anban.ssm.vmamba.layers import downsample, patch_embed

SMALL: dict[str, Any] = {
    "depths": (1, 2),
    "dims": 8,
    "ssm_d_state": 2,
    "forward_type": "v05_noz",
    "patchembed_version": "v2",
    "downsample_version": "v3",
    "drop_path_rate": 0.0,
}
NORMS = ("ln", "ln2d", "bn")


def network(**options: Any) -> VSSM:
    torch.manual_seed(0)
    return VSSM(**{**SMALL, "num_classes": 5, **options}).eval()


def backbone(**options: Any) -> VSSMBackbone:
    torch.manual_seed(0)
    return VSSMBackbone(**{**SMALL, "out_indices": (0, 1), **options}).eval()


def image(*shape: int) -> Tensor:
    return torch.randn(shape or (2, 3, 32, 48), generator=torch.Generator().manual_seed(1))


# ---- the published networks ------------------------------------------------------------------------------------------

EXACT = {
    "vmambav0_tiny_224": 22_893_448,
    "vmambav2_tiny_224": 30_705_832,
    "vmambav2v_tiny_224": 30_249_064,
}


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_published_sizes(name: str) -> None:
    published = CONFIGURATIONS[name]
    with torch.device("meta"):
        model = VSSM(**published.arguments)
        normed = 0

        def add(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            nonlocal normed
            normed += 5 * output.numel()  # as the release's counter (fvcore) does

        for module in model.modules():
            if isinstance(module, nn.LayerNorm):
                module.register_forward_hook(add)
        counts = count(model, (torch.empty(1, 3, 224, 224),))
    parameters = sum(p.numel() for p in model.parameters())
    assert parameters == EXACT.get(name, parameters)
    assert round(parameters / 1e6) == published.parameters
    assert round((counts.macs + normed) / 1e9, 1) == published.macs


def test_levels_of_the_backbone() -> None:
    with torch.device("meta"):
        levels = VSSMBackbone(**CONFIGURATIONS["vmambav2v_tiny_224"].arguments)(torch.empty(1, 3, 1024, 512))
    assert [tuple(level.shape[1:]) for level in levels] == [
        (96, 256, 128),
        (192, 128, 64),
        (384, 64, 32),
        (768, 32, 16),
    ]


# ---- what the network and its backbone form share ---------------------------------------------------------------------


@pytest.mark.parametrize("norm_layer", NORMS)
def test_the_backbone_is_the_network_without_classifier(norm_layer: str, tmp_path: Path) -> None:
    whole, levels = network(norm_layer=norm_layer), backbone(norm_layer=norm_layer)
    torch.save({"model": whole.state_dict(), "epoch": 3}, tmp_path / "classifier.pth")
    load_official(levels, tmp_path / "classifier.pth")
    x = image()
    first, second = levels(x)
    assert first.shape == (2, 8, 8, 12)
    assert second.shape == (2, 16, 4, 6)
    # the last stage's out norm and the classifier's norm both start as 1 and 0
    pooled = second.mean((2, 3))
    torch.testing.assert_close(whole.classifier.head(pooled), whole(x), rtol=1e-4, atol=1e-5)


def test_a_backbone_checkpoint_is_loaded_strictly() -> None:
    one, other = backbone(), backbone(norm_layer="ln")
    with torch.no_grad():
        one.outnorm0.weight.fill_(2.0)  # type: ignore[union-attr, operator]
    load_official(other, one.state_dict())
    assert torch.equal(other(image())[0], one(image())[0])
    broken = one.state_dict()
    del broken["outnorm0.weight"]
    with pytest.raises(InputError, match=r"1 missing \(outnorm0.weight\)"):
        load_official(other, broken)


def test_some_levels_equal_those_of_all() -> None:
    torch.manual_seed(0)
    every = VSSMBackbone(**{**SMALL, "depths": (1, 1, 1), "out_indices": (0, 1, 2)}).eval()
    some = VSSMBackbone(**{**SMALL, "depths": (1, 1, 1), "out_indices": [1]}).eval()
    state = {n: t for n, t in every.state_dict().items() if not n.startswith(("outnorm0", "outnorm2"))}
    load_official(some, state)
    (got,) = some(image())
    assert torch.equal(got, every(image())[1])
    assert some.widths == [16]


def test_features_that_are_not_normed_are_what_the_norm_is_given() -> None:
    normed, bare = backbone(), backbone(out_norm=False)
    assert not [name for name in bare.state_dict() if name.startswith("outnorm")]
    load_official(bare, {n: t for n, t in normed.state_dict().items() if not n.startswith("outnorm")})
    for i, (one, other) in enumerate(zip(normed(image()), bare(image()), strict=True)):
        assert torch.equal(
            normed.get_submodule(f"outnorm{i}")(other.permute(0, 2, 3, 1)), one.permute(0, 2, 3, 1)
        )


# ---- layouts, sizes, weights -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(32, 48), (33, 39), (16, 100)])
@pytest.mark.parametrize("versions", [("v1", "v1"), ("v1", "v2"), ("v2", "v3")])
def test_channels_first_equals_channels_last(versions: tuple[str, str], size: tuple[int, int]) -> None:
    options = {"patchembed_version": versions[0], "downsample_version": versions[1], "patch_norm": False}
    last, first = network(norm_layer="ln", **options), network(norm_layer="ln2d", **options)
    first.load_state_dict(last.state_dict())
    x = image(1, 3, *size)
    assert first.channel_first
    assert not last.channel_first
    torch.testing.assert_close(first(x), last(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("norm_layer", NORMS)
def test_downsampling_of_odd_sizes(norm_layer: str) -> None:
    first = norm_layer != "ln"
    x = torch.randn(2, 4, 5, 7)
    x = x if first else x.permute(0, 2, 3, 1)
    for version, size in (("v1", (3, 4)), ("v2", (2, 3)), ("v3", (3, 4))):
        y = downsample(version, 4, 6, norm_layer=norm_layer)(x)
        assert tuple(y.shape) == ((2, 6, *size) if first else (2, *size, 6))


@pytest.mark.parametrize(
    ("version", "patch", "size"), [("v1", 2, 16), ("v1", 8, 4), ("v2", 4, 8), ("v2", 8, 2), ("v2", 2, 34)]
)
def test_patch_embedding_of_other_patches(version: str, patch: int, size: int) -> None:
    assert patch_embed(version, 5, 6, patch)(torch.zeros(1, 5, 32, 32)).shape == (1, size, size, 6)


def test_weights_of_the_first_releases_have_other_names() -> None:
    old = {"norm_layer": "ln", "forward_type": "v0", "patchembed_version": "v1", "mlp_ratio": 0.0}
    one, other = network(**old), network(**old)
    torch.nn.init.ones_(one.classifier.head.weight)
    names = {
        "classifier.norm.": "norm.",
        "classifier.head.": "head.",
        "blocks.0.norm.": "blocks.0.ln_1.",
        "blocks.1.norm.": "blocks.1.ln_1.",
        ".op.": ".self_attention.",
        "patch_embed.0.": "patch_embed.proj.",
        "patch_embed.2.": "patch_embed.norm.",
    }
    state = {}
    for name, tensor in one.state_dict().items():
        for new, before in names.items():
            name = name.replace(new, before)
        state[name] = tensor
    assert "layers.1.blocks.0.self_attention.x_proj_weight" in state
    assert "norm.weight" in state
    load_official(other, {"state_dict": state})
    assert torch.equal(other(image()), one(image()))


def test_position_embeddings_are_resized() -> None:
    one = network(posembed=True, imgsize=32)
    assert one.pos_embed is not None
    assert one.pos_embed.shape == (1, 8, 8, 8)
    assert one(image(1, 3, 64, 40)).shape == (1, 5)
    other = network(posembed=True, imgsize=64)
    load_official(other, one.state_dict())
    assert other.pos_embed is not None
    assert other.pos_embed.shape == (1, 8, 16, 16)
    assert other.pos_embed.mean().item() == pytest.approx(one.pos_embed.mean().item(), abs=2e-3)


def test_the_backbone_adds_its_position_embedding_unless_told_not_to() -> None:
    with_it, without = (backbone(posembed=True, imgsize=32, add_pos_embed=add) for add in (True, False))
    plain = backbone()
    load_official(plain, {n: t for n, t in without.state_dict().items() if n != "pos_embed"})
    without.load_state_dict(with_it.state_dict())
    load_official(plain, {n: t for n, t in with_it.state_dict().items() if n != "pos_embed"})
    x = image(1, 3, 32, 32)
    assert torch.equal(without(x)[0], plain(x)[0])
    assert not torch.equal(with_it(x)[0], plain(x)[0])


# ---- training -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm_layer", NORMS)
def test_a_step_in_bf16_gives_every_parameter_a_finite_gradient(norm_layer: str) -> None:
    model = network(norm_layer=norm_layer, forward_type="v05", gmlp=True).train()
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(100 * image()).float().square().mean()
    loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


def test_checkpointing_changes_nothing() -> None:
    plain, kept = network().train(), network(use_checkpoint=True).train()
    for model in (plain, kept):
        model(image()).square().sum().backward()
    for one, other in zip(plain.parameters(), kept.parameters(), strict=True):
        assert torch.equal(one.grad, other.grad)  # type: ignore[arg-type]


def test_drop_path_grows_with_the_depth() -> None:
    model = network(drop_path_rate=0.3, depths=(2, 2))
    assert [b.drop_path.p for b in model.modules() if isinstance(b, VSSBlock)] == pytest.approx(
        [0, 0.1, 0.2, 0.3]
    )


def test_the_start_of_linear_layers_and_norms() -> None:
    model = network(dims=64)
    head = model.classifier.head
    assert head.weight.std().item() == pytest.approx(0.02, rel=0.15)
    assert not head.bias.any()
    norms = [m for m in model.modules() if isinstance(m, nn.LayerNorm)]
    assert all((m.weight == 1).all() and not m.bias.any() for m in norms)


def test_branches_can_be_left_out() -> None:
    x = torch.randn(1, 3, 4, 8)
    only_ffn, only_scan = VSSBlock(8, ssm_ratio=0), VSSBlock(8, mlp_ratio=0)
    assert {name.partition(".")[0] for name, _ in only_ffn.named_parameters()} == {"norm2", "mlp"}
    assert {name.partition(".")[0] for name, _ in only_scan.named_parameters()} == {"norm", "op"}
    assert only_ffn(x).shape == only_scan(x).shape == x.shape


def test_a_network_with_blocks_of_ones_own_leaves_the_others_alone() -> None:
    class Still(SS2D):
        def forward(self, x: Tensor) -> Tensor:
            return torch.zeros_like(x)

    class Block(VSSBlock):
        scan = Still

    class Mine(VSSMBackbone):
        block = Block

    torch.manual_seed(0)
    mine = Mine(**SMALL, out_indices=(0, 1)).eval()
    load_official(mine, backbone().state_dict())
    assert not torch.equal(mine(image())[0], backbone()(image())[0])
    assert {type(m) for m in mine.modules() if isinstance(m, SS2D)} == {Still}
    assert {type(m) for m in backbone().modules() if isinstance(m, SS2D)} == {SS2D}


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"norm_layer": "gn"}, "norm_layer is 'gn'"),
        ({"dims": [8, 16, 32]}, "3 widths for 2 stages"),
        ({"patchembed_version": "v3"}, "patchembed_version is 'v3'"),
        ({"downsample_version": "none"}, "downsample_version is 'none'"),
        ({"forward_type": "v05_nozz"}, "'v05_nozz' is not known"),
        ({"mlp_act_layer": "tanh"}, "act_layer is 'tanh'"),
    ],
)
def test_bad_arguments_are_refused(options: dict[str, Any], why: str) -> None:
    with pytest.raises(InputError, match=why):
        network(**options)


def test_a_stage_that_is_not_there_is_refused() -> None:
    for indices in ((0, 2), (-1,), ()):
        with pytest.raises(InputError, match="out_indices are"):
            backbone(out_indices=indices)


def test_the_tables_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_module("anban.ssm.vmamba", run_name="__main__")
    lines = capsys.readouterr().out.splitlines()
    assert any(line.split()[:1] == ["v05"] for line in lines)
    assert any(
        line.split() == ["vmambav2v_tiny_224", "VMamba-T[s1l8]", "30", "M", "4.9", "G"] for line in lines
    )
