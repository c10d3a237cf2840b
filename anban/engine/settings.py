"""The sections `train` and `machine` of every recipe: their fields are the schema."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Interval

from anban.errors import InputError
from anban.recipe.schema import Count, Positive


@dataclass(frozen=True)
class Train:
    """How long and how to train.

    Attributes:
        iterations: optimiser steps; give this or `epochs`.
        epochs: passes over the training split; the last incomplete batch of a pass is dropped.
        batch_size: samples per optimiser step, over all processes and accumulated micro-batches together, so that
            neither of the two changes it (losses that look at a whole batch still see their share, and batch norms
            see `sync_batch_norm`).
        accumulate: micro-batches per step (memory divided by this).
        precision: fp32, or autocast to bf16 or fp16 (fp16 with loss scaling).
        clip_norm: largest L2 norm of the gradient of each optimiser's parameters; null does not clip.
        sync_batch_norm: with several processes, batch norms see the samples of all of them (of a micro-batch, where there
            are several), as one process would; false leaves each process its share, with the statistics of the first kept.
        ema: decay of an exponential moving average of the weights, which is then what is evaluated; null for none.
        eval_every: optimiser steps between validations; null validates once per epoch.
        validate: name of the protocol used for validation while training.
        non_finite: what a loss or gradient that is infinite or not a number does. `stop` ends the run at the next logged
            loss and costs nothing before; `skip` leaves the whole step out (and waits for the device in every step to
            know); `roll-back` goes back to the last validation and on with other draws, three times at the most.
    """

    iterations: Count | None = None
    epochs: Positive | None = None
    batch_size: Count = 8
    accumulate: Count = 1
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    clip_norm: Positive | None = None
    sync_batch_norm: bool = False
    ema: Annotated[float, Interval(gt=0, lt=1)] | None = None
    eval_every: Count | None = None
    validate: str = "whole"
    non_finite: Literal["stop", "skip", "roll-back"] = "stop"

    def __post_init__(self) -> None:
        if (self.iterations is None) == (self.epochs is None):
            raise InputError(f"Found iterations={self.iterations} and epochs={self.epochs}.", where="train",
                             expected="exactly one of train.iterations and train.epochs",
                             do="set the other one to null")  # fmt: skip
        if self.batch_size % self.accumulate:
            raise InputError(f"A batch of {self.batch_size} cannot be cut into {self.accumulate} equal parts.",
                             where="train.accumulate", expected="a divisor of train.batch_size")  # fmt: skip

    def steps_per_epoch(self, samples: int) -> int:
        return max(1, samples // self.batch_size)

    def total_steps(self, samples: int) -> int:
        if self.iterations is not None:
            return self.iterations
        assert self.epochs is not None
        return max(1, round(self.epochs * self.steps_per_epoch(samples)))


@dataclass(frozen=True)
class Machine:
    """How a run is carried out; nothing here changes what it computes, so nothing here enters the recipe's hash.

    Attributes:
        workers: data-loading processes; 0 loads in the training process.
        log_every: steps between lines of training loss.
        checkpoint_every: steps between writes of `last.pt`; null writes it with each validation.
        keep_every: steps between checkpoints that are kept as `step-N.pt`, beside `last.pt` and `best.pt`; null keeps
            none.
        keep_last: how many of these are kept, the latest ones; null keeps all.
        eval_batch: samples per evaluation batch (those of one size together).
        images: validation samples shown in TensorBoard.
        train_samples: training samples scored with each validation (at most as many as that has), to see a gap between
            the two; 0 scores none.
        clear_cache: when to give the GPU's cached memory back: never, or after every epoch or step (slow; for cards
            shared with others).
        channels_last: keep convolution weights with their channels last in memory, which makes most training steps
            faster on CPUs (by 10 to 30 % for our change networks on two cores) and on GPUs with half precision.
        profile: measure the trained network's cost (MACs, FPS, memory) at the end of the run.
    """

    workers: Annotated[int, Ge(0)] = 0
    log_every: Count = 10
    checkpoint_every: Count | None = None
    keep_every: Count | None = None
    keep_last: Count | None = None
    eval_batch: Count = 8
    images: Annotated[int, Ge(0)] = 3
    train_samples: Annotated[int, Ge(0)] = 8
    clear_cache: Literal["never", "epoch", "step"] = "never"
    channels_last: bool = True
    profile: bool = True
