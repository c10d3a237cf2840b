"""The denoising task as the loop uses it: measures, health, gradient shares, critics, teachers and starts."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from anban.engine import checkpoint
from anban.engine.evaluate import evaluate
from anban.engine.run import execute, open_run, prepare
from anban.engine.stream import StepSampler, batches
from anban.engine.trained import evaluate_trained, load_trained
from anban.errors import InputError
from anban.recipe import load_recipe
from anban.record import RunFolder
from anban.tasks.denoise import metric
from anban.tasks.denoise.debug import debug
from anban.tasks.denoise.interpolation import write_interpolated
from anban.tasks.denoise.models.twin import Separated
from anban.tasks.denoise.protocols import apply_protocol, parse_protocol
from anban.tasks.denoise.task import DenoiseTask, Evaluation, _correlations
from anban.tasks.denoise.tests.slices import SIDE, write_npy

CPU = torch.device("cpu")
SMALL = ["data.patch=32", "data.patches=2", "model.levels.width=4", "critic.width=2", "train.iterations=2",
         "train.batch_size=2", "train.eval_every=null", "alternation.gradients_every=null", "schedule.name=constant",
         "machine.profile=false", "machine.log_every=1", "machine.train_samples=0", "machine.images=0", "eval.shown=0"]  # fmt: skip


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_npy(
        tmp_path_factory.mktemp("set"), {"train/L001": 2, "val/L002": 1, "test/L003": 1, "test/L004": 1}
    )


def recipe(root: Path, *overrides: str) -> Any:
    return load_recipe("ct/demo-cncl", [f"data.root={root}", *SMALL, *overrides])


def stepped(root: Path, *overrides: str, steps: int = 1) -> tuple[DenoiseTask, list[dict[str, Tensor]]]:
    """A task after some steps, and what each of them logged."""
    task, loop = prepare(recipe(root, *overrides), CPU)
    stream = batches(loop.data, StepSampler(4, 2, 0, 0, steps), task.collate)
    logged = []
    for step, micro in zip(range(steps), stream, strict=False):
        task.step = step
        for module in task.modules.values():
            module.train()
        logged.append(loop.updater.apply(task, micro))
    return cast(DenoiseTask, task), logged


class Constant(nn.Module):
    """Takes the noise away that it was told of, and finds a content of its own."""

    def __init__(self, noise: Tensor, content: Tensor):
        super().__init__()
        self.noise, self.content = noise, content

    def forward(self, noisy: Tensor) -> Separated:
        return Separated(noisy - self.noise, self.noise.expand_as(noisy), self.content.expand_as(noisy))


# ---- measures ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("normalisation", ["range", "deviation", "variance"])
def test_scores_are_in_hounsfield_units_whatever_the_network_sees(root: Path, normalisation: str) -> None:
    task = DenoiseTask(recipe(root, f"data.normalisation={normalisation}").config)
    task.check_data()
    low, full = (x[0].numpy() for x in task.data.slices("test")[0])
    sample = task.evaluation_data("test")[0]
    network = Constant(torch.zeros(1), sample["clean"])
    (record, made), *_ = task.evaluate(network, task.collate([sample]), "whole+hu-160..240")
    a, b = (np.clip(x.astype(np.float64), -160, 240) for x in (low, full))
    expected = {
        "psnr": peak_signal_noise_ratio(b, a, data_range=400),
        "ssim": structural_similarity(b + 160, a + 160, data_range=400, gaussian_weights=True, sigma=1.5,
                                      use_sample_covariance=False),
        "rmse": float(np.sqrt(np.mean((a - b) ** 2))),
    }  # fmt: skip
    for name, value in expected.items():
        assert record["scores"][f"low_dose_{name}"] == pytest.approx(value, rel=1e-4), name
        assert record["scores"][name] == pytest.approx(value, rel=1e-3), name
    np.testing.assert_allclose(made[0], low, atol=0.05)
    np.testing.assert_allclose(made[2], full, atol=0.05)
    assert record["patient"] == "L003"
    assert record["content_correlation"] == pytest.approx(1, abs=1e-6)


def test_the_low_dose_comes_first_and_patients_have_their_own_means(root: Path) -> None:
    task = DenoiseTask(recipe(root).config)
    result = evaluate(task, Constant(torch.zeros(1), torch.ones(1)), "test", "whole", device=CPU)
    assert list(result.scores) == list(task.scores)
    assert next(iter(result.scores)).startswith("low_dose_")
    assert result.scores["psnr"] == pytest.approx(result.scores["low_dose_psnr"])
    means = metric.by_patient(result.records)
    assert list(means) == ["L003", "L004"]
    values = [means[patient]["rmse"] for patient in means]
    assert result.scores["rmse"] == pytest.approx(np.mean(cast(list[float], values)))
    equal = metric.slice_scores(image := torch.zeros(1, 1, 16, 16), image, (-10, 10))
    assert equal[0]["psnr"] is None
    assert metric.summary([{"scores": dict.fromkeys(task.scores)}])["psnr"] is None


def test_protocols_state_their_data_range() -> None:
    assert parse_protocol("whole").to_dict("test", "32x32")["data_range"] == "4096 HU (-1024..3072)"
    stamp = parse_protocol("sliding-16-8+hu-160..240").to_dict("test", "32x32")
    assert (stamp["name"], stamp["size"], stamp["data_range"]) == (
        "sliding-16-8+hu-160..240", "16x16", "400 HU (-160..240)"
    )  # fmt: skip
    assert parse_protocol("whole+hu-1024..3072").name == "whole"
    for wrong in ("sliding", "whole+hu5", "sliding-8-9", "whole+hu3..2"):
        with pytest.raises(InputError):
            parse_protocol(wrong)
    with pytest.raises(InputError, match="given twice"):
        Evaluation(protocols=["whole", "whole+hu-1024..3072"])


@pytest.mark.parametrize("side", [20, 37])
def test_windows_are_put_together_again(side: int) -> None:
    noisy = torch.randn(2, 1, side, side + 3)
    made = apply_protocol(parse_protocol("sliding-24-10"), lambda x: torch.cat([x, 2 * x], dim=1), noisy)
    torch.testing.assert_close(made, torch.cat([noisy, 2 * noisy], dim=1))


# ---- health ------------------------------------------------------------------------------------------------


def test_a_collapsed_content_branch_is_told(root: Path) -> None:
    task = DenoiseTask(recipe(root).config)
    task.check_data()
    samples = [task.evaluation_data("test")[number] for number in (0, 1)]
    noise = samples[0]["noisy"] - samples[0]["clean"]

    def kinds(content: Tensor) -> set[str]:
        found = task.evaluate(Constant(noise, content), task.collate(samples[:1]), "whole")
        return {symptom.kind for symptom in task.health([record for record, _ in found])}

    assert kinds(samples[0]["clean"]) == set()
    assert kinds(1 - samples[0]["clean"]) == set(), "a fusion undoes a sign"
    assert kinds(torch.randn_like(noise)) == {"content-collapse"}
    assert kinds(torch.ones_like(noise)) == {"content-collapse"}
    silhouette = (samples[0]["clean"] > 0.1).float()
    assert kinds(silhouette) == {"content-collapse"}, "body and air alone are no content"
    assert _correlations(noise[None], torch.full_like(noise[None], -1000.0), (-160, 240)) == [None], "all air"
    worse = task.evaluate(Constant(-noise, samples[0]["clean"]), task.collate(samples[:1]), "whole")
    assert [s.kind for s in task.health([record for record, _ in worse])] == ["worse-than-input"]


# ---- losses and turns --------------------------------------------------------------------------------------


def test_every_term_is_weighted_and_logged(root: Path) -> None:
    terms = [
        "loss.texture={weight: 0.5, encoder: identity}",
        "content_loss.l2={weight: 3}",
        "adversarial.loss=lsgan",
    ]
    _, (logged,) = stepped(root, *terms, "loss.l1.weight=10")
    names = {"image/l1", "image/texture", "noise/l1", "content/l2", "adversarial/lsgan"}
    assert set(logged) == {"loss", "critic", *names}
    assert float(logged["loss"]) == pytest.approx(sum(float(logged[name]) for name in names), rel=1e-5)
    _, (more,) = stepped(root, *terms, "loss.l1.weight=20")
    assert float(more["image/l1"]) == pytest.approx(2 * float(logged["image/l1"]))


def test_the_critic_takes_its_turn_exactly(root: Path) -> None:
    task, logged = stepped(root, "adversarial.loss=gan", "alternation.generator_steps=3", steps=2)
    before = [p.clone() for p in task.modules["critic"].parameters()]
    assert ["critic" in each for each in logged] == [False, False]
    _, logged = stepped(root, "adversarial.loss=gan", "alternation.generator_steps=2", steps=2)
    assert ["critic" in each for each in logged] == [False, True]
    fresh, _ = prepare(recipe(root, "adversarial.loss=gan"), CPU)
    assert all(torch.equal(a, b) for a, b in zip(before, fresh.modules["critic"].parameters(), strict=True))
    trained, _ = stepped(root, "adversarial.loss=gan")
    assert not all(
        torch.equal(a, b) for a, b in zip(before, trained.modules["critic"].parameters(), strict=True)
    )


def test_two_halves_of_a_batch_make_the_step_of_the_whole(root: Path) -> None:
    """Without norms that look at the batch: BN is replaced."""
    options = [
        "adversarial.loss=lsgan",
        "model.levels.norm=ln",
        "optimizer.name=sgd",
        "critic_optimizer.name=sgd",
    ]
    weights = []
    for halves in (1, 2):
        task, loop = prepare(recipe(root, *options), CPU)
        samples = [task.training_data()[0, number] for number in range(4)]
        size = 4 // halves
        micro = [task.collate(samples[i : i + size]) for i in range(0, 4, size)]
        loop.updater.apply(task, micro)
        weights.append([p.detach() for name in ("model", "critic") for p in task.modules[name].parameters()])
    for whole, half in zip(*weights, strict=True):
        torch.testing.assert_close(whole, half, atol=1e-5, rtol=1e-3)


def test_gradient_shares_show_which_term_moves_which_branch(root: Path) -> None:
    options = ["alternation.gradients_every=2", "loss.texture={weight: 100, encoder: identity}"]
    _, (first, second) = stepped(root, *options, steps=2)
    assert not any(name.startswith("gradient of") for name in first)
    shares = {
        name.removeprefix("gradient of "): float(v)
        for name, v in second.items()
        if name.startswith("gradient")
    }
    for branch in ("content", "noise"):
        assert sum(v for name, v in shares.items() if name.startswith(branch)) == pytest.approx(1, rel=1e-5)
    assert shares["content/noise/l1"] == 0, "branches that do not meet before the fusion"
    assert shares["noise/noise/l1"] > 0.05
    _, (_, light) = stepped(root, options[0], "loss.texture={weight: 0.001, encoder: identity}", steps=2)
    assert float(light["gradient of content/image/texture"]) < shares["content/image/texture"]


def test_a_loss_without_terms_or_teacher_is_refused(root: Path) -> None:
    with pytest.raises(InputError, match="No loss term"):
        DenoiseTask(recipe(root, "loss.l1=null", "noise_loss.l1=null").config)
    with pytest.raises(InputError, match=r"teacher\.run=FOLDER or teacher\.ema"):
        prepare(recipe(root, "loss.distillation={}"), CPU)
    with pytest.raises(InputError, match="two teachers"):
        recipe(root, "teacher.run=a", "teacher.ema=0.9")
    with pytest.raises(InputError, match="needs two networks"):
        prepare(recipe(root, "start.alpha=0.5"), CPU)
    with pytest.raises(InputError, match="no such run"):
        prepare(recipe(root, "start.run=/nowhere"), CPU)


# ---- runs --------------------------------------------------------------------------------------------------


def finished(folder: RunFolder) -> dict[str, Any]:
    return checkpoint.load(folder.checkpoints / "last.pt")


@pytest.fixture(scope="module")
def adversarial(root: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A run of four steps with a critic that takes every second one, EMA and all."""
    options = [
        "adversarial.loss=lsgan",
        "alternation.generator_steps=2",
        "train.ema=0.5",
        "train.iterations=4",
        "eval.shown=1",
    ]
    return execute(recipe(root, *options), tmp_path_factory.mktemp("runs"), device="cpu")


def test_a_resumed_run_goes_on_with_both_optimisers_exactly(
    root: Path, adversarial: RunFolder, tmp_path: Path
) -> None:
    options = [
        "adversarial.loss=lsgan",
        "alternation.generator_steps=2",
        "train.ema=0.5",
        "train.iterations=3",
    ]
    part = execute(recipe(root, *options), tmp_path, device="cpu")
    run, longer = open_run(part.path, ["train.iterations=4"])
    execute(longer, tmp_path, device="cpu", resume=run)
    whole, resumed = finished(adversarial), finished(RunFolder.open(part.path))
    assert set(whole["optimizers"]) == {"model", "critic"}
    for key in ("modules", "optimizers", "average"):
        a, b = (torch.utils._pytree.tree_leaves(state[key]) for state in (whole, resumed))
        assert len(a) == len(b) > 0
        assert all(
            torch.equal(x, y) if isinstance(x, Tensor) else x == y for x, y in zip(a, b, strict=True)
        ), key
    assert resumed["optimizers"]["critic"]["state"][0]["step"] == 2


def test_a_run_keeps_its_pictures(adversarial: RunFolder) -> None:
    samples = adversarial.figures / "samples"
    index = json.loads((samples / "index.json").read_text())
    assert (index["view"], index["window"], index["range"]) == ("slices", "soft-tissue", [-160, 240])
    (entry,) = index["samples"]
    for name in ("slice", "noise_branch", "profile"):
        assert (samples / entry["folder"] / f"{name}.png").stat().st_size > 5000
    assert {"content.png", "noise.png"} <= {file.name for file in (samples / entry["folder"]).iterdir()}
    low = np.asarray(Image.open(samples / entry["folder"] / "low.png")).astype(int) - index["offset"]
    assert low.shape == (SIDE, SIDE)
    assert -1024 <= low.min() < -900
    names = {line["name"] for line in adversarial.info["scores"]}
    assert {"psnr", "low_dose_psnr"} <= names
    stamp = adversarial.info["protocols"]["test/whole"]
    assert stamp["data_range"] == "4096 HU (-1024..3072)"


def test_a_trained_run_predicts_slices_in_hounsfield_units(
    adversarial: RunFolder, root: Path, tmp_path: Path
) -> None:
    trained = load_trained(adversarial.path, [], "cpu")
    file = next((root / "test").glob("L003*input.npy"))
    (made,) = trained.task.predict(trained.model, [file], tmp_path / "out", "whole", CPU)
    image = tifffile.imread(made)
    assert (image.dtype, image.shape) == (np.dtype(np.float32), (SIDE, SIDE))
    sample = trained.task.evaluation_data("test")[0]
    with torch.no_grad():
        ((_, expected),) = trained.task.evaluate(trained.model, trained.task.collate([sample]), "whole")
    np.testing.assert_allclose(image, expected[0], rtol=1e-4, atol=0.1)
    with pytest.raises(InputError, match="Several slices"):
        list(trained.task.predict(trained.model, [file, file], tmp_path / "out", "whole", CPU))
    with pytest.raises(InputError, match="no slice"):
        list(trained.task.predict(trained.model, [tmp_path / "out" / "a.txt"], tmp_path, "whole", CPU))


def test_networks_between_two_runs_start_teach_and_are_written(
    adversarial: RunFolder, root: Path, tmp_path: Path
) -> None:
    run = adversarial.path
    start, _ = prepare(recipe(root, f"start.run={run}", f"start.other={run}", "start.alpha=0.25"), CPU)
    stored = checkpoint.load(run / "checkpoints" / "best.pt")["state_dict"]
    for name, tensor in start.modules["model"].state_dict().items():
        torch.testing.assert_close(tensor, stored[name])
    with pytest.raises(InputError, match="another network"):
        prepare(recipe(root, f"start.run={run}", "model.levels.width=8"), CPU)

    task, _ = stepped(root, "loss.distillation={}", f"teacher.run={run}", "model.levels.width=8", steps=2)
    assert all(
        torch.equal(t, stored[n.removeprefix("network.")])
        for n, t in task.modules["teacher"].state_dict().items()
    )

    write_interpolated(run, run / "checkpoints" / "last.pt", 0.5, out := tmp_path / "between.pt")
    rows = evaluate_trained(load_trained(out, [], "cpu"), ["whole"], "test")
    assert math.isfinite(rows[0]["scores"]["psnr"])


def test_an_average_teaches_and_is_taught_by_every_step(root: Path) -> None:
    task, logged = stepped(root, "loss.distillation={weight: 2}", "teacher.ema=0.5", steps=3)
    average = task.modules["teacher"].get_submodule("network")
    assert isinstance(average, AveragedModel)
    assert int(average.n_averaged) == 3
    assert not task.modules["teacher"].training
    assert all(p.grad is None and not p.requires_grad for p in task.modules["teacher"].parameters())
    # The student is in training and the average is not, so they differ from the first step on.
    assert all(float(each["image/distillation"]) > 0 for each in logged)


@pytest.mark.parametrize("name", ["ct/red-cnn", "ct/unet"])
def test_networks_of_one_output_train_too(root: Path, name: str) -> None:
    width = "model.width=4" if name == "ct/red-cnn" else "model.levels.width=4"
    options = [override for override in SMALL if not override.startswith("model.")]
    config = load_recipe("ct/demo-cncl", [f"data.root={root}", *options, f"model.name={name}", width,
                                          "alternation.gradients_every=1", "optimizer.new_layers=null"])  # fmt: skip
    task, loop = prepare(config, CPU)
    logged = loop.updater.apply(task, next(batches(loop.data, StepSampler(4, 2, 0, 0, 1), task.collate)))
    assert logged["image/l1"] == logged["noise/l1"]
    assert not any(name.startswith("gradient of") for name in logged)


def test_every_recipe_has_a_debug_size(tmp_path: Path) -> None:
    for name in ("ct/interpolate-training", "ct/kd", "ct/texture-1"):
        small = load_recipe(name, debug(load_recipe(name).config, tmp_path))
        assert small.config["model"]["levels"]["width"] == 8
    assert small.config["loss"]["texture"]["encoder"] == "identity"
