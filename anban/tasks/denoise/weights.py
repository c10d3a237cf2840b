"""Networks that a recipe takes over from other runs: as a start, as an end of an interpolation, as a teacher."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from annotated_types import Interval
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from anban.errors import InputError
from anban.recipe.schema import Share, construct, pick
from anban.tasks.denoise.interpolation import interpolate
from anban.tasks.denoise.models import MODELS
from anban.tasks.denoise.models.twin import Separated

NETWORKS = {f"ct/{name}": address for name, address in MODELS.items()}


@dataclass(frozen=True)
class Start:
    """Whose weights the network starts with; by default nobody's.

    Attributes:
        run: a run folder or checkpoint of the same network.
        other: a second one, trained from the first or both from a third: the start is alpha times `run` plus 1 - alpha
            times this one (network interpolation). Training on fits its normalisation statistics.
        alpha: the share of `run`.
    """

    run: str | None = None
    other: str | None = None
    alpha: Share = 1.0

    def apply(self, network: nn.Module) -> None:
        """Give the network these weights.

        Raises:
            InputError: a run that is missing or of another network, or a share without two runs.
        """
        if self.alpha < 1 and (self.run is None or self.other is None):
            raise InputError(f"A share of {self.alpha:g} needs two networks.", where="start",
                             expected="start.run and start.other, one trained from the other's weights",
                             do="set start.run=FOLDER start.other=FOLDER")  # fmt: skip
        if self.run is None:
            return
        weights: dict[str, Tensor] = read_checkpoint(Path(self.run))["state_dict"]
        if self.other is not None:
            weights = interpolate(weights, read_checkpoint(Path(self.other))["state_dict"], self.alpha)
        _load(network, weights, Path(self.run))


@dataclass(frozen=True)
class TeacherSettings:
    """Who teaches the term `loss.distillation`.

    Attributes:
        run: a run folder or checkpoint of any denoising network.
        ema: instead, the network itself as an exponential moving average of its weights, with this decay.
    """

    run: str | None = None
    ema: Annotated[float, Interval(gt=0, lt=1)] | None = None

    def __post_init__(self) -> None:
        if self.run is not None and self.ema is not None:
            raise InputError(
                "There are two teachers.", where="teacher", expected="teacher.run or teacher.ema"
            )


class Teacher(nn.Module):
    """Denoised images (B, 1, H, W) to learn from; it stays in evaluation, and no gradient reaches it.

    Args:
        settings: who it is.
        student: the network that learns.

    Raises:
        InputError: neither a run nor a decay is given, or the run cannot be read.
    """

    def __init__(self, settings: TeacherSettings, student: nn.Module):
        super().__init__()
        self.network: nn.Module
        if settings.ema is not None:
            average = get_ema_multi_avg_fn(settings.ema)  # type: ignore[no-untyped-call]
            self.network = AveragedModel(student, multi_avg_fn=average, use_buffers=True)
        elif settings.run is not None:
            state = read_checkpoint(Path(settings.run))
            arguments = dict(state["config"]["model"])
            network = construct(pick(NETWORKS, arguments.pop("name"), "teacher.run"), arguments)
            _load(network, state["state_dict"], Path(settings.run))
            self.network = network
        else:
            raise InputError("The distillation loss has no teacher.", where="teacher",
                             expected="a trained run, or a decay for the network's own average",
                             do="set teacher.run=FOLDER or teacher.ema=0.999")  # fmt: skip
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> Teacher:
        """Stays in evaluation, whatever the task around it does."""
        del mode
        return super().train(False)

    @torch.no_grad()
    def forward(self, noisy: Tensor) -> Tensor:
        """Its denoised images."""
        return separated(self.network(noisy), noisy).image

    def follow(self, student: nn.Module) -> None:
        """After a step of the student: the average moves on; a trained teacher stays as it is."""
        if isinstance(self.network, AveragedModel):
            self.network.update_parameters(student)


def separated(output: Tensor | Separated, noisy: Tensor) -> Separated:
    """Image, noise and content of any network: one with a single output has the image for its content."""
    return output if isinstance(output, Separated) else Separated(output, noisy - output, output)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint, given itself or as its run's folder (the best one, else the last).

    Raises:
        InputError: there is none, or it is damaged.
    """
    path = path.expanduser()
    files = [path / "checkpoints" / name for name in ("best.pt", "last.pt")] if path.is_dir() else [path]
    file = next((each for each in files if each.is_file()), None)
    if file is None:
        raise InputError(
            "There is no such run or checkpoint.", where=path, expected="a run folder or a .pt file"
        )
    try:
        state: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
        state["config"]["model"], state["state_dict"]
    except Exception as error:  # the many ways a zip or pickle can be broken
        raise InputError(
            f"This is no checkpoint of a run ({str(error).splitlines()[0]}).", where=file
        ) from None
    return state


def _load(network: nn.Module, weights: dict[str, Tensor], where: Path) -> None:
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        raise InputError(f"The weights are of another network: {str(error).splitlines()[1].strip()}", where=where,
                         expected="a run with the same section model") from None  # fmt: skip
