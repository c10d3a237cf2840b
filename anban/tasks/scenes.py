"""What tasks on scenes with label maps have in common: their data, their networks, their batches."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

from torch import nn
from torch.utils.data import Dataset, default_collate

from anban.data.augment import build_augment
from anban.data.scenes import ROLES, SceneData, common_size
from anban.errors import InputError
from anban.recipe.schema import Collection, construct, pick, unknown
from anban.tasks.contract import Task


class SceneTask(Task):
    """A task whose section `data` is a `SceneData`; its recipes have the sections `augment` and `model` as well.

    Attributes:
        networks: name in a recipe -> address.
        augments: the section `augment`.
        data: set by the task.
    """

    networks: ClassVar[Mapping[str, str]]
    augments: ClassVar[Collection]
    data: SceneData[Any, Any]

    def check_data(self) -> dict[str, Any]:
        report = self.data.check()
        self._check_training_sizes()
        for split in self.config["eval"]["splits"]:
            self._check_evaluated(split)
        return report

    def _check_training_sizes(self) -> None:
        # A step from elsewhere may well bring all samples to one size.
        stackable = any(name in ("crop", "resize") or ":" in name for name in self.config["augment"])
        if "train" not in self.data.roles or self.data.tile is not None or stackable:
            return
        scenes = self.data.scenes("train")
        if common_size(scenes) == "mixed":
            sizes = sorted({f"{scene.size[0]}x{scene.size[1]}" for scene in scenes if scene.size})
            raise InputError(f"The training scenes differ in size: {', '.join(sizes[:8])}.", where=self.data.root,
                             expected="scenes of one size, which can be stacked to a batch",
                             do="add augment.crop.size or data.tile")  # fmt: skip

    def _check_evaluated(self, split: str) -> None:
        try:
            self.data.scenes(split)
        except InputError as error:
            if split in ROLES:
                raise InputError(error.what, where=f"eval.splits ({split})", expected=error.expected,
                                 do=f"set data.{split}, or take it out of eval.splits") from None  # fmt: skip
            found = self.data.splits()
            if split in found or split.endswith(".txt"):
                raise
            raise unknown("split", split, {*self.data.roles, *found}, "eval.splits") from None
        self.data.label_report(split)

    def has_split(self, split: str) -> bool:
        """Whether a split may be asked for: a role that the recipe sets to null may not."""
        return split not in ROLES or split in self.data.roles

    def build_networks(self) -> None:
        arguments = dict(self.config["model"])
        network: nn.Module = construct(pick(self.networks, arguments.pop("name"), "model.name"), arguments)
        self.modules["model"] = network

    def training_data(self) -> Dataset[Any]:
        augment = build_augment(self.config["augment"], self.augments)
        return self.data.dataset("train", augment, self.config["seed"], tiled=True)

    def evaluation_data(self, split: str) -> Dataset[Any]:
        return self.data.dataset(split)

    @staticmethod  # it is sent to worker processes, without the task and its networks
    def collate(samples: Sequence[Any]) -> Any:
        return default_collate(list(samples))


def refuse_repeated(protocols: Sequence[str], called: Callable[[str], str]) -> None:
    """Refuse a protocol that is asked for twice, be it in other words.

    Args:
        protocols: the list `eval.protocols`.
        called: from a protocol as it is given to the name under which its numbers are filed.
    """
    known: dict[str, str] = {}
    for given in protocols:
        name = called(given)
        if name in known:
            raise InputError(f"'{known[name]}' and '{given}' are the same protocol, {name}.",
                             where="eval.protocols", expected="every protocol once")  # fmt: skip
        known[name] = given
