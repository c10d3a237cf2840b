"""The real commands on bad slices, on weights that are not there, on a collapsed branch, and on a run that was killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torchvision.models.vgg import cfgs, make_layers

from anban.cli.main import main
from anban.engine import checkpoint
from anban.record import RunFolder
from anban.tasks.denoise import loss
from anban.tasks.denoise.tests.slices import dicom, write_npy

TINY = ["data.patch=32", "data.patches=2", "model.levels.width=4", "critic.width=2", "train.iterations=2",
        "train.batch_size=2", "train.eval_every=null", "train.validate=whole", "eval.protocols=[whole]",
        "alternation.gradients_every=1", "machine.profile=false", "machine.log_every=1", "machine.train_samples=0",
        "machine.images=0", "eval.shown=0"]  # fmt: skip


class Done(NamedTuple):
    status: int
    out: str
    err: str


@pytest.fixture
def anban(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Done]:
    """The command in this process: exit status, standard output and standard error."""

    def command(*words: object) -> Done:
        monkeypatch.setattr(sys, "argv", ["anban", *map(str, words)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        told = capsys.readouterr()
        return Done(int(ended.value.code or 0), told.out, told.err)

    return command


def run(root: Path, out: Path, *overrides: str) -> list[object]:
    return ["run", "ct/demo-cncl", f"data.root={root}", *TINY, *overrides, "--out", out, "--device", "cpu"]


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_npy(tmp_path_factory.mktemp("set"), {"train/L001": 2, "val/L002": 1, "test/L003": 1})


# ---- bad slices --------------------------------------------------------------------------------------------


def mixed(root: Path) -> None:
    for number, kind in ((1, "MONOCHROME2"), (2, "MONOCHROME1")):
        for dose in ("low", "full"):
            dicom(root / dose / "train" / f"{number}.dcm", "L008", number, PhotometricInterpretation=kind)


def without_rescale(root: Path) -> None:
    dicom(root / "low" / "train" / "1.dcm", "L008")
    dicom(root / "full" / "train" / "1.dcm", "L008", RescaleSlope=None)


def unpaired(root: Path) -> None:
    (root / "val" / "L002_0_target.npy").unlink()


def not_finite(root: Path) -> None:
    pixels = np.load(path := root / "test" / "L003_0_input.npy")
    pixels[0, :3] = np.nan
    np.save(path, pixels)


def another_range(root: Path) -> None:
    path = root / "val" / "L002_0_input.npy"
    np.save(path, 4096 * np.load(path))


def in_two_splits(root: Path) -> None:
    write_npy(root, {"test/L001": 3})


@pytest.mark.parametrize(
    ("spoil", "parts"),
    [
        (mixed, ("mixed photometric interpretation: MONOCHROME1, MONOCHROME2", "export the series again")),
        (
            without_rescale,
            ("The DICOM file has no RescaleSlope", "full/train/1.dcm", "export the series again"),
        ),
        (unpaired, ("'val/L002_0' has 1 files at low dose and 0 at full dose", "add the other one")),
        (not_finite, ("3 of 1024 pixels are NaN or infinite", "L003_0_input.npy", "leave out this slice")),
        (another_range, ("which 'unit' cannot have", "L002_0_input.npy", "set data.values")),
        (in_two_splits, ("patient L001 is in 'train' and in 'test'", "move the patient to one role")),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_bad_slices_end_a_run_before_it_trains(
    spoil: Callable[[Path], None], parts: tuple[str, ...], tmp_path: Path, anban: Callable[..., Done]
) -> None:
    """One message on standard error that says what, where and what to do; the doctor finds the same."""
    root = write_npy(tmp_path / "set", {"train/L001": 2, "val/L002": 1, "test/L003": 1})
    spoil(root)
    done = anban(*run(root, tmp_path / "runs"))
    assert done.status == 2
    (message,) = done.err.split("anban: ")[1:]
    assert all(part in message for part in (*parts, "where:", "do:")), message
    assert "Traceback" not in done.err
    (row,) = json.loads(anban("runs", "list", "--out", tmp_path / "runs", "--json").out)
    assert row["state"] == "failed"
    assert not list(tmp_path.glob("runs/ct/*/*/checkpoints/*.pt"))
    looked = anban("doctor", root, "--json")
    assert looked.status == 1
    found = [each for each in json.loads(looked.out)["findings"] if each["level"] == "error"]
    first = parts[0].replace("'train' and in 'test'", "'test' and in 'train'")
    assert any(first in each["what"] for each in found), found
    assert all(each["do"] for each in found)


# ---- weights of VGG ----------------------------------------------------------------------------------------


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder for torch's downloads, and no connection."""

    def unreachable(url: str, *args: Any, **options: Any) -> None:
        raise OSError(f"no route to {url}")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("torch.hub.download_url_to_file", unreachable)
    loss._encoder.cache_clear()
    return tmp_path / "cache" / "hub" / "checkpoints"


TEXTURE = "loss.texture={weight: 0.5, layers: 9}"


def test_a_loss_of_features_without_its_weights_is_refused_by_name(
    sound: Path, cache: Path, tmp_path: Path, anban: Callable[..., Done]
) -> None:
    cache.mkdir(parents=True)
    for damaged in (False, True):
        if damaged:
            torch.save({"features.0.weight": torch.zeros(1)}, cache / "vgg16-397923af.pth")
        done = anban(*run(sound, tmp_path / "runs", TEXTURE))
        assert done.status == 2
        (message,) = done.err.split("anban: ")[1:]
        assert message.startswith("The ImageNet weights of vgg16 cannot be had")
        assert str(cache / "vgg16-397923af.pth") in message
        assert "https://download.pytorch.org/models/vgg16-397923af.pth" in message


def test_a_loss_of_features_reads_its_weights_from_a_file(
    sound: Path, cache: Path, tmp_path: Path, anban: Callable[..., Done]
) -> None:
    """Drawn weights stand for ImageNet's: the file is what decides the value."""
    cache.mkdir(parents=True)
    torch.manual_seed(0)
    layers = make_layers(cfgs["D"])
    state = {f"features.{name}": tensor for name, tensor in layers.state_dict().items()}
    torch.save(state, cache / "vgg16-397923af.pth")
    done = anban(*run(sound, tmp_path / "runs", TEXTURE, "loss.perceptual={layers: 9}"))
    assert done.status == 0, done.err
    values = {
        m["name"]: m["value"] for m in RunFolder.open(Path(done.out.strip())).metrics() if m["step"] == 1
    }
    assert values["image/texture"] > 0
    assert values["image/perceptual"] > 0
    low, full = torch.rand(2, 1, 32, 32), torch.rand(2, 1, 32, 32)
    mean, deviation = (
        torch.tensor(x).reshape(3, 1, 1) for x in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    )
    a, b = (layers[:9]((x.expand(-1, 3, -1, -1) - mean) / deviation) for x in (low, full))
    torch.testing.assert_close(loss.perceptual(low, full, layers=9), (a - b).square().mean())
    loss._encoder.cache_clear()


def test_a_patch_that_is_a_few_positions_behind_vgg_is_told_of(
    sound: Path, cache: Path, tmp_path: Path, anban: Callable[..., Done]
) -> None:
    done = anban(*run(sound, tmp_path / "runs", "loss.texture={weight: 0.5}"))
    told = "loss.texture sees a patch of 32x32 pixels as 2x2 positions behind 30 layers of vgg16"
    assert told in done.err
    (folder,) = tmp_path.glob("runs/ct/*/*")
    assert any(text.startswith(told) for text in RunFolder.open(folder).info["data"]["warnings"])
    done = anban(*run(sound, tmp_path / "few", TEXTURE))
    assert "positions" not in done.err, "8x8 behind 9 layers"


# ---- a run, looked over ------------------------------------------------------------------------------------


def test_the_doctor_tells_of_a_collapsed_content_branch(
    sound: Path, tmp_path: Path, anban: Callable[..., Done]
) -> None:
    """Nothing asks the content branch for content; the record says which terms reach it."""
    done = anban(*run(sound, tmp_path / "runs", "loss.l1=null", "optimizer.new_layers=null"))
    assert done.status == 0, done.err
    looked = anban("doctor", done.out.strip())
    assert looked.status == 0
    assert "content-collapse" in looked.out
    assert "content_loss.l1.weight=1" in looked.out
    names = {m["name"] for m in RunFolder.open(Path(done.out.strip())).metrics()}
    assert {"gradient of content/noise/l1", "gradient of noise/noise/l1"} <= names


def test_a_trained_run_is_evaluated_and_denoises(
    sound: Path, tmp_path: Path, anban: Callable[..., Done]
) -> None:
    trained = anban(*run(sound, tmp_path / "runs")).out.strip()
    done = anban("eval", trained, "--protocol", "sliding-16-8+hu-160..240", "--device", "cpu", "--json")
    (row,) = json.loads(done.out)
    assert {"psnr", "ssim", "rmse", "low_dose_psnr"} <= set(row["scores"])
    assert row["protocol"]["data_range"] == "400 HU (-160..240)"
    (low,) = (sound / "test").glob("*input.npy")
    done = anban("predict", trained, low, "--out", tmp_path / "out", "--device", "cpu")
    assert done.status == 0, done.err
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["L003_0_input.tif"]


def test_a_killed_run_goes_on_with_generator_and_critic_bit_for_bit(
    sound: Path, tmp_path: Path, anban: Callable[..., Done]
) -> None:
    options = ["adversarial.loss=gan", "alternation.generator_steps=3", "train.ema=0.9", "train.iterations=24",
               "machine.checkpoint_every=1"]  # fmt: skip
    whole = anban(*run(sound, tmp_path / "whole", *options))
    assert whole.status == 0, whole.err
    words = list(map(str, run(sound, tmp_path / "killed", *options)))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[4])}
    with subprocess.Popen(
        [sys.executable, "-m", "anban", *words], env=environment, stderr=subprocess.DEVNULL
    ) as child:
        limit = time.monotonic() + 120
        while time.monotonic() < limit and child.poll() is None:
            lines = [file.read_text() for file in tmp_path.glob("killed/ct/*/*/metrics.jsonl")]
            if lines and lines[0].count('"critic"') >= 2:
                break
            time.sleep(0.005)
        child.send_signal(signal.SIGKILL)
    (folder,) = tmp_path.glob("killed/ct/*/*")
    step = checkpoint.load(folder / "checkpoints" / "last.pt")["step"]
    assert 5 <= step < 24, "the kill came too late to show anything"
    resumed = anban("run", "--resume", folder, "--out", tmp_path / "killed", "--device", "cpu")
    assert resumed.status == 0, resumed.err
    ends = [checkpoint.load(Path(done.out.strip()) / "checkpoints" / "last.pt") for done in (whole, resumed)]
    assert set(ends[0]["optimizers"]) == {"model", "critic"}
    for key in ("modules", "optimizers", "average"):
        a, b = (torch.utils._pytree.tree_leaves(end[key]) for end in ends)
        assert len(a) == len(b) > 0
        same = (
            torch.equal(x, y) if isinstance(x, torch.Tensor) else x == y for x, y in zip(a, b, strict=True)
        )
        assert all(same), key
    logged = [
        {(m["step"], m["name"]): m["value"] for m in RunFolder.open(Path(done.out.strip())).metrics()
         if m["split"] == "train" and not m["name"].startswith("time")}
        for done in (whole, resumed)
    ]  # fmt: skip
    assert logged[0].keys() == logged[1].keys()
    assert logged[0][24, "critic"] == logged[1][24, "critic"]
