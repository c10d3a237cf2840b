"""BIT, ChangeFormer and MambaBCD-tiny beside the authors' code: time and memory, with the same weights.

A training step is that of `networks` (forward, binary cross entropy, backward, AdamW; float32, two pairs of
256 px), inference is one pair, memory that of a training step above the level before. The authors' code is
read from clones in the folder that ANBAN_BENCH_OFFICIAL names and stays as it is; a clone that is not there
is left out. Its random weights are loaded into ours, and a network whose scores then differ by more than
1e-4 of the largest one is not compared. Packages that it imports and these networks do not need are
replaced by stand-ins; it needs einops (`pip install einops`). MambaBCD's scan is a CUDA kernel there: on a
processor the release has the loop in torch that its tests check the kernel by, which is compared in
inference alone (a training step with it takes many minutes), and a second peer is its network around our
scan, which compares everything but the scan. BIT, where a step is short, gets three times the rounds.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple
from unittest.mock import MagicMock

import torch
import torchvision
from torch import Tensor, nn
from torchvision.ops import StochasticDepth

import anban
from anban.record.environment import commit
from anban.ssm.scan import selective_scan
from anban.tasks.change.models.vss import Blocks
from benchmarks.networks import Network
from benchmarks.timing import Findings, Row, Unavailable, interleave, megabytes, page, row, seconds

VARIABLE = "ANBAN_BENCH_OFFICIAL"
LOOP = "official, its scan in torch"
COMMIT = "The authors' code, as of commit:"
ERROR = 1e-4  # largest difference of the scores, relative to the largest score

# The authors' networks --------------------------------------------------------------------------------------


class _DropPath(StochasticDepth):  # type: ignore[misc]
    """timm's, which takes the share alone."""

    def __init__(self, p: float = 0.0):
        super().__init__(p, mode="row")


# What is asked of these never runs, so mocks, which answer to every name, will do.
UNUSED = "fvcore fvcore.nn pytest scipy scipy.io selective_scan_cuda selective_scan_cuda_oflex"
UNUSED += " timm timm.models triton triton.language"
STAND_INS: dict[str, Any] = {
    **{name: MagicMock() for name in UNUSED.split()},
    "timm.models.layers": SimpleNamespace(
        DropPath=_DropPath, to_2tuple=lambda side: (side, side), trunc_normal_=nn.init.trunc_normal_
    ),
    # Random weights of the right names and shapes, not those of ImageNet: nothing is downloaded.
    "torchvision.models.utils": SimpleNamespace(
        load_state_dict_from_url=lambda *_, **__: torchvision.models.resnet18().state_dict()
    ),
}


def clone(repository: str) -> Path:
    """The folder with the clone of `repository`, "owner/name" on GitHub; Unavailable where there is none."""
    clones, how = os.environ.get(VARIABLE), f"git clone https://github.com/{repository}"
    if not clones:
        raise Unavailable(f"set {VARIABLE} to a folder of clones, and there: {how}")
    folder = Path(clones).resolve() / repository.partition("/")[2]
    if not folder.is_dir():
        raise Unavailable(f"{VARIABLE} has no {folder.name}: {how}")
    return folder


@contextmanager
def imports(folder: Path, stand_ins: Mapping[str, Any]) -> Iterator[None]:
    """Let modules be imported from `folder` and the stand-ins; then forget them: clones share names."""
    before, path = dict(sys.modules), list(sys.path)
    sys.modules.update(stand_ins)
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path[:] = path  # authors add to it as well
        for name in sys.modules.keys() & stand_ins.keys():
            del sys.modules[name]
        for name, module in list(sys.modules.items()):
            if Path(getattr(module, "__file__", None) or "").is_relative_to(folder):
                del sys.modules[name]
        sys.modules.update(before)


def _bit(folder: Path) -> dict[str, nn.Module]:
    with imports(folder, STAND_INS):
        define = importlib.import_module("models.networks").define_G
    return {"official": define(SimpleNamespace(net_G="base_transformer_pos_s4_dd8_dedim8"))}


def _changeformer(folder: Path) -> dict[str, nn.Module]:
    with imports(folder, STAND_INS):
        network = importlib.import_module("models.ChangeFormer").ChangeFormerV6
    official = network(embed_dim=256)
    official.register_forward_hook(lambda *given: given[-1][-1])  # of its scores, those at full resolution
    return {"official": official}


def _mambabcd(folder: Path) -> dict[str, nn.Module]:
    with imports(folder / "kernels" / "selective_scan", STAND_INS):
        loop = importlib.import_module("test_selective_scan").selective_scan_ref_v2
    with imports(folder, STAND_INS):
        vmamba: Any = importlib.import_module("changedetection.models.vmamba")
        network = importlib.import_module("changedetection.models.ChangeMambaBCD").ChangeMambaBCD
    tiny = {"depths": (2, 2, 4, 2), "dims": 96, "drop_path_rate": 0.2, **asdict(Blocks())}
    tiny |= {"patchembed_version": "v2", "downsample_version": "v3"}
    peers = {}
    for name, scan in ((LOOP, loop), ("official, our scan", selective_scan)):
        vmamba.SelectiveScanOflex = SimpleNamespace(apply=_as_kernel(scan))  # looked up when a block is made
        peers[name] = network(pretrained=None, **tiny)
    return peers


def _as_kernel(scan: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """`scan`, called as the release calls its kernel (which is also told how to lay out its threads)."""

    def apply(*given: Any) -> Tensor:
        *tensors, bias, softplus = given[:8]
        return scan(*tensors, delta_bias=bias, delta_softplus=softplus)

    return apply


class Release(NamedTuple):
    """A network whose authors gave out `repository` on GitHub; it gets `times` as many rounds as asked."""

    name: str
    repository: str
    ours: str
    peers: Callable[[Path], dict[str, nn.Module]]
    times: int


RELEASES = (
    Release("BIT", "justchenhao/BIT_CD", "change/bit", _bit, times=3),
    Release("ChangeFormer", "wgcban/ChangeFormer", "change/changeformer", _changeformer, times=1),
    Release("MambaBCD-tiny", "ChenHongruixuan/ChangeMamba", "change/mambabcd", _mambabcd, times=1),
)

# Measuring --------------------------------------------------------------------------------------------------


def run(rounds: int) -> Findings:
    """Rows per network: a training step, inference and memory; and by how much the scores differ."""
    if importlib.util.find_spec("einops") is None:
        raise Unavailable("the authors' code needs einops: pip install einops")
    rows: list[Row] = []
    errors: dict[str, dict[str, float]] = {}
    commits, left_out = {}, {}
    for release in RELEASES:
        try:
            folder = clone(release.repository)
            errors[release.name], found = _compare(release, folder, rounds)
        except Unavailable as why:
            left_out[release.name] = str(why)
            continue
        rows += found
        commits[release.repository] = commit(folder)
    if not rows:
        raise Unavailable("; ".join(left_out.values()))
    details = {"error": errors, "commits": commits, "left_out": left_out}
    return Findings(rows, details, _page(rows, details))


def _compare(release: Release, folder: Path, rounds: int) -> tuple[dict[str, float], list[Row]]:
    """The errors of our scores against every peer's, and the rows."""
    torch.manual_seed(0)
    peers = release.peers(folder)
    ours = anban.create_model(release.ours)
    weights = next(iter(peers.values())).state_dict()
    for peer in peers.values():
        peer.load_state_dict(weights)
    anban.load_official(ours, weights)
    networks = {name: Network(lambda made=made: made) for name, made in {"ours": ours, **peers}.items()}
    errors = {name: _error(networks["ours"], networks[name]) for name in peers}
    if max(errors.values()) > ERROR:
        raise Unavailable(f"the scores differ by {max(errors.values()):.1e} of the largest")

    rounds *= release.times
    inferring = {name: seconds(network.infer) for name, network in networks.items()}
    networks.pop(LOOP, None)  # its backward pass writes all pixels' gradient anew for every pixel
    training = {name: seconds(network.step) for name, network in networks.items()}
    heavy = {name: megabytes(network.step) for name, network in networks.items()}
    rows: list[Row] = []
    for what, works in (("a training step", training), ("inference", inferring)):
        taken = interleave(works, rounds)
        rows += [row(taken, f"{release.name}, {what}", "ours", name) for name in works if name != "ours"]
    taken = interleave(heavy, 1, warm=False)
    case = f"{release.name}, memory of a training step"
    return errors, rows + [row(taken, case, "ours", name, unit="MB") for name in heavy if name != "ours"]


@torch.inference_mode()
def _error(ours: Network, peer: Network) -> float:
    scores, expected = (each.model.eval()(*each.pairs[:, :1]) for each in (ours, peer))
    return float((scores - expected).abs().max() / expected.abs().max())


def _page(rows: list[Row], details: dict[str, Any]) -> str:
    errors = [
        f"{name}, {peer}: {error:.1e}"
        for name, found in details["error"].items()
        for peer, error in found.items()
    ]
    lists = {
        "Largest difference of the scores, relative to the largest score, with the same weights:": errors,
        COMMIT: [f"{of}: {at or 'unknown'}" for of, at in details["commits"].items()],
        "Left out:": [f"{name}: {why}" for name, why in details["left_out"].items()],
    }
    return page("Beside the authors' code", rows, lists)
