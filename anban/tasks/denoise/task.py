"""CT denoising: a slice at low dose in, the slice at full dose out.

A batch is a dict: `noisy` and `clean` (B, 1, H, W) float32, as `data.clip` and `data.normalisation` make them; `mean` and
`divisor` (B,), by which values are taken back to Hounsfield units; `name`; `patient`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tifffile
import torch
from annotated_types import Ge, Len
from torch import Tensor, nn
from torch.utils.data import Dataset, default_collate

from anban.data.augment import build_augment
from anban.data.draws import derive
from anban.data.tiles import pad_to_multiple
from anban.errors import InputError
from anban.recipe.schema import Arguments, Choice, Collection, Count, Section, construct, pick
from anban.tasks.contract import LOOP_SECTIONS, OPTIMIZERS, Diverged, Symptom, Task, Updater
from anban.tasks.denoise import metric
from anban.tasks.denoise.data import DenoiseData, Doses
from anban.tasks.denoise.loss import LOSS_SECTIONS, Terms
from anban.tasks.denoise.models import DISCRIMINATORS
from anban.tasks.denoise.models.twin import Separated, Twin
from anban.tasks.denoise.pictures import WINDOWS, Shown, WindowName, draw_slices, panel
from anban.tasks.denoise.protocols import apply_protocol, parse_protocol
from anban.tasks.denoise.readers import SUFFIXES, read_hounsfield
from anban.tasks.denoise.weights import NETWORKS, Start, Teacher, TeacherSettings, separated

AUGMENTS = {name: f"anban.data.augment:{name.title()}" for name in ("flip", "rotate90")}
AUGMENT_SECTION = Collection(AUGMENTS)

SECTIONS: dict[str, Section] = {
    "data": Arguments("anban.tasks.denoise.data:DenoiseData", places=("root",), means=("cache_mb",)),
    "augment": AUGMENT_SECTION,
    "model": Choice(NETWORKS),
    "start": Arguments("anban.tasks.denoise.weights:Start", places=("run", "other")),
    **LOSS_SECTIONS,
    "adversarial": Arguments("anban.tasks.denoise.loss:Adversarial"),
    "critic": Choice(DISCRIMINATORS),
    "critic_optimizer": Choice(OPTIMIZERS),
    "alternation": Arguments("anban.tasks.denoise.task:Alternation", means=("gradients_every",)),
    "teacher": Arguments("anban.tasks.denoise.weights:TeacherSettings", places=("run",)),
    **LOOP_SECTIONS,
    "eval": Arguments("anban.tasks.denoise.task:Evaluation"),
}

#: A content branch whose output has a lower correlation with the true slice than this, in soft tissue, shows no content.
#: Over whole slices body and air alone make 0.9. Seen in soft tissue: 0.83 to 0.98 where the branch works, generated or
#: real slices, 0.64 to 0.67 where it does in part; 0.1 to 0.4 after a few steps, below 0.05 where it has collapsed. An
#: untrained branch may still let 0.8 of the noisy slice through.
COLLAPSED = 0.5


@dataclass(frozen=True)
class Alternation:
    """How generator and critic take turns, and how closely the generator's losses are watched.

    Attributes:
        generator_steps: of the generator for each one of the critic; both see the batch of the last of them.
        gradients_every: steps between looks at which term of the loss moves which branch; null never looks. They are
            recorded where such a step is logged (machine.log_every).
    """

    generator_steps: Count = 1
    gradients_every: Count | None = 100


@dataclass(frozen=True)
class Evaluation:
    """How the trained network is measured.

    Attributes:
        splits: evaluated at the end of a run, the first one being the result.
        protocols: see `anban.tasks.denoise.protocols`; the first one is the result.
        shown: slices of the first split that are kept as pictures.
        window: in which they are shown: "lung", "soft-tissue", "bone", "brain" or "whole".
    """

    splits: Annotated[list[str], Len(1)] = field(default_factory=lambda: ["test"])
    protocols: Annotated[list[str], Len(1)] = field(default_factory=lambda: ["whole"])
    shown: Annotated[int, Ge(0)] = 3
    window: WindowName = "soft-tissue"

    def __post_init__(self) -> None:
        names = [parse_protocol(name).name for name in self.protocols]
        if len(set(names)) < len(names):
            raise InputError(f"A protocol is given twice: {', '.join(names)}.", where="eval.protocols",
                             expected="every protocol once")  # fmt: skip


class DenoiseTask(Task):
    """The denoising task as the loop sees it: `model` is the generator, `critic` its critic where there is one."""

    select = metric.SELECT
    scores = (*(metric.INPUT + name for name in metric.SCORES), *metric.SCORES)
    gap = 3.0

    def __init__(self, config: dict[str, Any]):
        super().__init__(config)
        self.data = DenoiseData(**config["data"])
        self.terms = Terms(config)
        self.alternation = Alternation(**config["alternation"])
        self.teaching = TeacherSettings(**config["teacher"])
        self.evaluation = Evaluation(**config["eval"])
        parse_protocol(config["train"]["validate"])
        if self.terms.judged:
            self.optimized = {"model": "optimizer", "critic": "critic_optimizer"}

    # Data -------------------------------------------------------------------------------------------------------

    def check_data(self) -> dict[str, Any]:
        report = self.data.check()
        for split in self.config["eval"]["splits"]:
            self.data.pairs(split)
        if report["sizes"].get("train") == "mixed" and self.data.patch is None:
            raise InputError("The training slices differ in size.", where=self.data.root,
                             expected="slices of one size, which can be stacked to a batch",
                             do="set data.patch")  # fmt: skip
        report["warnings"] += self.terms.told(self.data.patch)
        return report

    def has_split(self, split: str) -> bool:
        return split not in ("train", "val", "test") or split in self.data.roles

    def training_data(self) -> Dataset[Any]:
        augment = build_augment(self.config["augment"], AUGMENT_SECTION)
        return self.data.dataset("train", augment, self.config["seed"])

    def evaluation_data(self, split: str) -> Dataset[Any]:
        return self.data.dataset(split)

    @staticmethod
    def collate(samples: Sequence[Any]) -> Any:
        return default_collate(list(samples))

    # Training ---------------------------------------------------------------------------------------------------

    def build_networks(self) -> None:
        arguments = dict(self.config["model"])
        network: nn.Module = construct(pick(NETWORKS, arguments.pop("name"), "model.name"), arguments)
        Start(**self.config["start"]).apply(network)
        self.modules["model"] = network
        if self.terms.judged:
            arguments = dict(self.config["critic"])
            self.modules["critic"] = construct(
                pick(DISCRIMINATORS, arguments.pop("name"), "critic.name"), arguments
            )
        if self.terms.distils:
            self.modules["teacher"] = Teacher(self.teaching, network)

    def loss(self, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        terms, _ = self._generator_terms(batch)
        return torch.stack(list(terms.values())).sum(), terms

    def update(self, batches: Sequence[Any], updater: Updater) -> dict[str, Tensor]:
        """A step of the generator; after every `generator_steps` of them one of the critic, on the same images.

        Logged are the loss, every weighted term, the critic's loss and, now and then, the terms' shares of the
        gradient of each branch.
        """
        logged: dict[str, Tensor] = {}

        def log(values: Mapping[str, Tensor]) -> None:
            for name, value in values.items():
                share = value.detach() / len(batches)
                logged[name] = logged[name] + share if name in logged else share

        made = []
        for batch in batches:
            with updater.autocast():
                terms, outputs = self._generator_terms(batch)
                loss = torch.stack(list(terms.values())).sum()
            log({"loss": loss, **terms})
            if self._is_turn(self.alternation.gradients_every):
                log(self._gradient_shares(terms))
            updater.backward(loss / len(batches), "model")
            made.append(Separated(*(image.detach() for image in outputs)))
        updater.step("model")
        if "critic" in self.modules and self._is_turn(self.alternation.generator_steps):
            for batch, outputs in zip(batches, made, strict=True):
                with updater.autocast():
                    judgement = self._judgement(batch, outputs)
                log({"critic": judgement})
                updater.backward(judgement / len(batches), "critic")
            updater.step("critic")
        if isinstance(teacher := self.modules.get("teacher"), Teacher):
            teacher.follow(self.modules["model"])
        return logged

    def _is_turn(self, every: int | None) -> bool:
        return every is not None and (self.step + 1) % every == 0

    def _generator_terms(self, batch: Any) -> tuple[dict[str, Tensor], Separated]:
        """Every weighted term of the generator's loss, and what it made."""
        noisy, clean = batch["noisy"], batch["clean"]
        outputs = separated(self.forward.get("model", self.modules["model"])(noisy), noisy)
        taught = self.modules["teacher"](noisy) if "teacher" in self.modules else None
        terms = self.terms.restored(outputs, noisy, clean, taught)
        if "critic" in self.modules:
            # Past the wrapper for several processes: it waits for gradients of the critic, which get none here.
            terms |= self.terms.deceived(self.modules["critic"](outputs.image, outputs.noise, noisy))
        return terms, outputs

    def _judgement(self, batch: Any, made: Separated) -> Tensor:
        """The critic's loss, of true and made images in one pass (its norms see each image alone)."""
        noisy, clean = batch["noisy"], batch["clean"]
        pairs = ((clean, made.image), (noisy - clean, made.noise), (noisy, noisy))
        real, fake = self.forward["critic"](*(torch.cat(pair) for pair in pairs)).chunk(2)
        return self.terms.judgement(real, fake)

    def _gradient_shares(self, terms: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Of the gradient that reaches a branch's weights, the share of each term: norms over the sum of norms."""
        network = self.modules["model"]
        if not isinstance(network, Twin):
            return {}
        shares: dict[str, Tensor] = {}
        for branch in ("content", "noise"):
            weights = list(network.get_submodule(branch).parameters())
            norms = {name: _gradient_norm(term, weights) for name, term in terms.items()}
            total = torch.stack(list(norms.values())).sum().clamp(min=torch.finfo(torch.float32).tiny)
            shares |= {f"gradient of {branch}/{name}": norm / total for name, norm in norms.items()}
        return shares

    # Evaluation -------------------------------------------------------------------------------------------------

    def evaluate(
        self, model: nn.Module, batch: Any, protocol: str
    ) -> list[tuple[dict[str, Any], np.ndarray]]:
        parsed = parse_protocol(protocol)
        made = self._in_hounsfield(model, batch, protocol)
        low, full = (_hounsfield(batch[name], batch) for name in ("noisy", "clean"))
        after = metric.slice_scores(made.image, full, parsed.window)
        before = metric.slice_scores(low, full, parsed.window)
        resembled = _correlations(made.content, full, WINDOWS["soft-tissue"])
        results = []
        for number, name in enumerate(batch["name"]):
            if not all(torch.isfinite(image[number]).all() for image in made):
                raise Diverged(f"the network gives NaN for {name}")
            scores = {metric.INPUT + key: value for key, value in before[number].items()} | after[number]
            record = {"name": name, "patient": batch["patient"][number], "scores": scores,
                      "content_correlation": resembled[number]}  # fmt: skip
            results.append((record, torch.cat([image[number] for image in made]).float().cpu().numpy()))
        return results

    def _in_hounsfield(self, model: nn.Module, batch: Any, protocol: str) -> Separated:
        """What the network makes of a batch, each (B, 1, H, W) float64 in Hounsfield units."""
        multiple = int(getattr(model, "multiple_of", 1))

        def denoise(noisy: Tensor) -> Tensor:
            padded, crop = pad_to_multiple(noisy, multiple)
            return torch.cat(separated(model(padded), padded), dim=1)[crop]

        made = apply_protocol(parse_protocol(protocol), denoise, batch["noisy"])
        image, noise, content = made[:, :1], made[:, 1:2], made[:, 2:]
        divisor = batch["divisor"].reshape(-1, 1, 1, 1)
        return Separated(_hounsfield(image, batch), noise * divisor, _hounsfield(content, batch))

    def summary(self, records: Sequence[dict[str, Any]]) -> dict[str, float | None]:
        return metric.summary(records)

    def health(self, records: Sequence[dict[str, Any]]) -> list[Symptom]:
        found = []
        scores = self.summary(records)
        before, after = scores[metric.INPUT + self.select], scores[self.select]
        if before is not None and after is not None and after < before:
            found.append(Symptom(
                "worse-than-input", f"PSNR is {after:.2f} dB, that of the low-dose slices {before:.2f} dB",
                "The network has not learned yet, or its output is not in the units of its input.",
                "Train longer, lower optimizer.lr; a final activation or data.normalisation may cut values off.",
            ))  # fmt: skip
        correlations = [abs(r) for record in records if (r := record["content_correlation"]) is not None]
        if correlations and np.mean(correlations) < COLLAPSED:
            found.append(Symptom(
                "content-collapse",
                f"in soft tissue the content branch's output has a correlation of {np.mean(correlations):.2f} with the "
                "true slices",
                "The noise branch and the fusion do the work alone: nothing asks the content branch for content, or a "
                "term drowns what does (see the gradient shares, 'gradient of content/...').",
                "Give content_loss a term (content_loss.l1.weight=1), or lower the weight of loss.texture.",
            ))  # fmt: skip
        return found

    def stamp(self, protocol: str, split: str) -> dict[str, Any]:
        return parse_protocol(protocol).to_dict(split, self.data.common_size(split))

    # Pictures ---------------------------------------------------------------------------------------------------

    def shown(self, split: str) -> list[int]:
        """Slices evenly spread over the split's list: the same for every run on the same data."""
        count = min(self.evaluation.shown, total := len(self.data.pairs(split)))
        return [i * total // count for i in range(count)]

    def draw(self, folder: Path, split: str, shown: Sequence[tuple[int, np.ndarray]], protocol: str) -> None:
        slices = [self._shown_slice(split, number, prediction) for number, prediction in shown]
        draw_slices(folder / "samples", slices, self.evaluation.window, split, parse_protocol(protocol).name)

    def picture(self, split: str, index: int, prediction: np.ndarray) -> np.ndarray | None:
        return panel(self._shown_slice(split, index, prediction), WINDOWS[self.evaluation.window])

    def _shown_slice(self, split: str, number: int, prediction: np.ndarray) -> Shown:
        slices = self.data.slices(split)
        low, full = (x.clamp(*self.data.clip)[0].numpy() for x in slices[number])
        image, noise, content = prediction
        return Shown(slices.pairs[number].name, low, full, image, noise, content)

    @torch.inference_mode()
    def predict(
        self, model: nn.Module, inputs: Sequence[Path], out: Path, protocol: str, device: torch.device
    ) -> Iterator[Path]:
        """Slices, or folders of them: `<name>.tif`, float32 in Hounsfield units."""
        out.mkdir(parents=True, exist_ok=True)
        dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self.config["train"]["precision"])
        for path in _slice_files(inputs):
            low = torch.from_numpy(read_hounsfield(path, self.data.coding_of(path)))[None]
            noisy, _, scale = self.data.prepare(Doses(low, low))
            batch = self.collate([{"noisy": noisy, "mean": scale.mean, "divisor": scale.divisor}])
            batch = {name: value.to(device) for name, value in batch.items()}
            with torch.autocast(device.type, dtype, enabled=dtype is not None):
                image = self._in_hounsfield(model, batch, protocol).image[0, 0].float().cpu().numpy()
            tifffile.imwrite(out / f"{path.stem}.tif", image)
            yield out / f"{path.stem}.tif"

    @staticmethod
    def inputs(model: nn.Module) -> tuple[Tensor, ...]:
        return (torch.randn(1, 1, 256, 256),)

    def example(self) -> tuple[Tensor, ...]:
        generator = torch.Generator().manual_seed(derive("example"))
        return (torch.randn(1, 1, 512, 512, generator=generator),)


def _gradient_norm(term: Tensor, weights: Sequence[Tensor]) -> Tensor:
    if not term.requires_grad:  # a value alone, such as loss.perceptual without its gradient
        return term.new_zeros((), dtype=torch.float32)
    found = torch.autograd.grad(term, weights, retain_graph=True, allow_unused=True)
    squares = [gradient.float().square().sum() for gradient in found if gradient is not None]
    squares.append(term.new_zeros((), dtype=torch.float32))
    return torch.stack(squares).sum().sqrt()


def _hounsfield(image: Tensor, batch: Any) -> Tensor:
    """Values of the network in Hounsfield units, float64."""
    mean, divisor = (batch[name].double().reshape(-1, 1, 1, 1) for name in ("mean", "divisor"))
    scaled: Tensor = image.double() * divisor + mean
    return scaled


def _correlations(images: Tensor, targets: Tensor, window: tuple[float, float]) -> list[float | None]:
    """Of the pixels of images and targets (B, 1, H, W) where the target is in the window; 0 where an image is of one
    value there, None where the target is or has no such pixels."""
    found: list[float | None] = []
    for image, target in zip(images.double(), targets.double(), strict=True):
        inside = (target >= window[0]) & (target <= window[1])
        a, b = image[inside], target[inside]
        a, b = a - a.mean(), b - b.mean()
        varied = len(b) > 1 and float(b.abs().max()) > 1e-6
        found.append(float((a * b).sum() / (a.norm() * b.norm()).clamp(min=1e-12)) if varied else None)
    return found


def _slice_files(inputs: Sequence[Path]) -> list[Path]:
    found = []
    for given in inputs:
        inside = (
            sorted(p for p in given.rglob("*") if p.suffix.lower() in SUFFIXES) if given.is_dir() else [given]
        )
        if not inside or any(path.suffix.lower() not in SUFFIXES for path in inside):
            raise InputError(
                "This is no slice, nor a folder of slices.", where=given, expected=", ".join(SUFFIXES)
            )
        found += inside
    stems = [path.stem for path in found]
    if repeated := [path for path in found if stems.count(path.stem) > 1]:
        raise InputError(f"Several slices are called '{repeated[0].stem}'.", where=repeated[0],
                         expected="different names, after which the results are named",
                         do="predict their folders one by one")  # fmt: skip
    return found


TASK = DenoiseTask
