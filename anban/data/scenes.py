"""Data sets of scenes: pictures of one place with a label map, from files on disk to samples for a network.

A task says how its folders are laid out and how its labels are coded; everything that follows from that is here.
Shapes: H, W pixels of a scene (of a tile, when training on tiles); P pictures per scene.
"""

from __future__ import annotations

import hashlib
import operator
import os
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import Any, ClassVar, Generic, Literal, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import tv_tensors

from anban.data.draws import derive, drawing_from
from anban.data.images import read_header, read_rgb
from anban.data.tiles import grid, pad_reflect
from anban.errors import InputError

ROLES = ("train", "val", "test")
_MIB = 2**20

_In = TypeVar("_In")
_Out = TypeVar("_Out")
Decoded = tuple[list[Tensor], Tensor | None]
Sample = dict[str, Any]
LabelReader = Callable[[Path], NDArray[np.uint8]]


@dataclass(frozen=True)
class Scene:
    """One or more pictures of one place and size, and their label map (None where it is not needed).

    `size` (height, width) in pixels is None until the headers were read.
    """

    name: str
    pictures: tuple[Path, ...]
    label: Path | None
    size: tuple[int, int] | None = None

    @property
    def files(self) -> tuple[Path, ...]:
        """Pictures and label."""
        return self.pictures if self.label is None else (*self.pictures, self.label)


class LabelReport(Protocol):
    """What the labels of a split were found to hold; a task's own report says more."""

    @property
    def warnings(self) -> tuple[str, ...]:
        """What is accepted but worth knowing."""


S = TypeVar("S", bound=Scene)
R = TypeVar("R", bound=LabelReport)


def in_threads(function: Callable[[_In], _Out], items: Iterable[_In]) -> list[_Out]:
    """`function` of every item, in order; decoding and reading files let other threads run."""
    with ThreadPoolExecutor(max_workers=min(16, (os.cpu_count() or 1) + 2)) as pool:
        return list(pool.map(function, items))


def check_headers(scenes: Sequence[S]) -> tuple[list[S], list[InputError]]:
    """Open every file: the fit scenes with their sizes filled in, and what is wrong with the others."""
    fit: list[S] = []
    wrong: list[InputError] = []
    for found in in_threads(_sized, scenes):
        if isinstance(found, InputError):
            wrong.append(found)
        else:
            fit.append(found)
    return fit, wrong


def _sized(scene: S) -> S | InputError:
    try:
        headers = {path: read_header(path, label=path is scene.label) for path in scene.files}
    except InputError as error:
        return error
    sizes = {header.size for header in headers.values()}
    if len(sizes) == 1:
        return replace(scene, size=sizes.pop())
    told = ", ".join(f"{path.parent.name}/{path.name} {h.size[1]}x{h.size[0]}" for path, h in headers.items())
    return InputError(
        f"the files of one scene differ in size (width x height): {told}",
        where=scene.pictures[0],
        expected="pictures and label of the same size",
        do="cut or resample them to one grid; they are not resized silently",
    )


def common_size(scenes: Iterable[Scene]) -> str:
    """ "HxW" when all scenes are of one size, else "mixed"."""
    sizes = {scene.size for scene in scenes}
    size = next(iter(sizes)) if len(sizes) == 1 else None
    return f"{size[0]}x{size[1]}" if size else "mixed"


def overlaps(splits: Mapping[str, Sequence[Scene]]) -> list[tuple[str, str, str, Path]]:
    """Pictures that two splits share, by content: (first split, second split, name in the second, its path).

    A scene is shared when all its pictures are equal byte for byte. Only files of equal size are read.
    """
    by_size: dict[tuple[int, ...], list[tuple[str, Scene]]] = {}
    for split, scenes in splits.items():
        for scene in scenes:
            sizes = tuple(path.stat().st_size for path in scene.pictures)
            by_size.setdefault(sizes, []).append((split, scene))
    suspects = [
        entry for group in by_size.values() if len({split for split, _ in group}) > 1 for entry in group
    ]
    contents = in_threads(lambda entry: _content(entry[1]), suspects)
    seen: dict[bytes, tuple[str, Scene]] = {}
    found = []
    for (split, scene), content in zip(suspects, contents, strict=True):
        first, _ = seen.setdefault(content, (split, scene))
        if first != split:
            found.append((first, split, scene.name, scene.pictures[0]))
    return found


def _content(scene: Scene) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    for path in scene.pictures:
        digest.update(path.read_bytes())
    return digest.digest()


# The section `data` of a recipe ----------------------------------------------------------------------------------


class SceneData(ABC, Generic[S, R]):
    """The section `data` of a recipe, without its layouts and label codings. Nothing is read before it is asked for.

    Args:
        root: the data set's folder; relative paths start at the current folder, `~` is the home folder.
        roles: train, val and test -> the split used as that: a split's name, or the path of a list file (ending in
            .txt). A role that is None is left out.
        limit: use at most this many scenes of a split, evenly spaced through their sorted names.
        tile: train on tiles of this many pixels instead of whole scenes. Evaluation always sees whole scenes.
        tile_overlap: pixels that neighbouring tiles share.
        mean, std: of the pixel values as fractions 0..1, per channel.
        cache: keep decoded pictures in memory; None does so for splits below `cache_mb`.
        cache_mb: the size in MiB that None stands for.
        overlap: what to do when a file is in two splits.

    Attributes:
        inputs: what the pictures of a scene are called in a sample.
    """

    inputs: ClassVar[tuple[str, ...]]

    def __init__(
        self,
        root: str,
        roles: Mapping[str, str | None],
        *,
        limit: int | None,
        tile: int | None,
        tile_overlap: int,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        cache: bool | None,
        cache_mb: int,
        overlap: Literal["refuse", "warn"],
    ):
        if tile is not None and tile_overlap >= tile:
            raise InputError(
                f"tiles of {tile} pixels that share {tile_overlap}",
                where="data.tile_overlap",
                expected=f"0 to {tile - 1} pixels",
            )
        self.root = Path(root).expanduser().absolute()
        self.roles = {role: split for role, split in roles.items() if split is not None}
        self.limit, self.tile, self.tile_overlap = limit, tile, tile_overlap
        self.mean, self.std = tuple(mean), tuple(std)
        self.cache, self.cache_mb, self.overlap = cache, cache_mb, overlap
        self._scenes: dict[str, list[S]] = {}
        self._reports: dict[str, R] = {}
        self._pictures: dict[str, Pictures] = {}

    # What a task says about its data:

    @abstractmethod
    def find(self, split: str) -> list[S]:
        """The scenes of a split or list file, sorted by name, their sizes read; raises InputError for what is wrong."""

    @abstractmethod
    def splits(self) -> list[str]:
        """The splits that lie under the root."""

    @abstractmethod
    def look_at_labels(self, split: str) -> R:
        """What the labels of a split hold; raises InputError for labels that would spoil a run."""

    @abstractmethod
    def label_reader(self, split: str) -> LabelReader:
        """From a label's path to class numbers (H, W), uint8; it is sent to worker processes."""

    @abstractmethod
    def describe(self, reports: Mapping[str, R]) -> dict[str, Any]:
        """What a run's record keeps of the roles' labels.

        Raises:
            InputError: the roles do not agree.
        """

    # What follows from it:

    def scenes(self, split: str) -> list[S]:
        """The scenes of a role ("train", "val", "test") or of any other split, checked by their headers.

        Raises:
            InputError: a role that is left out; and see `find`.
        """
        if split in ROLES and split not in self.roles:
            raise InputError(
                f"The role '{split}' is left out: data.{split} is null.",
                where=f"data.{split}",
                expected="a split's name or a list file, since this split is asked for",
                do=f"set data.{split}, or ask for one of {', '.join(self.roles) or 'the splits of the folder'}",
            )
        if split not in self._scenes:
            found = self.find(self.roles.get(split, split))
            if self.limit is not None and self.limit < len(found):
                found = [found[i * len(found) // self.limit] for i in range(self.limit)]
            self._scenes[split] = found
        return self._scenes[split]

    def label_report(self, split: str) -> R:
        """What the labels of a role or split hold; see `look_at_labels`, which may refuse them."""
        if split not in self._reports:
            self._reports[split] = self.look_at_labels(split)
        return self._reports[split]

    @property
    def fingerprint(self) -> str:
        """12 hex digits that tell whether two runs saw the same data.

        They cover, per role: the names of the scenes used, the size in bytes of each file, and a checksum of
        every label. Pictures are not read, so one edited without changing its size goes unnoticed; where the
        data lie and how the splits are called does not matter.
        """
        digest = hashlib.sha256()
        for role in self.roles:
            scenes = self.scenes(role)
            checksums = in_threads(lambda s: zlib.crc32(s.label.read_bytes()) if s.label else 0, scenes)
            for scene, checksum in zip(scenes, checksums, strict=True):
                sizes = [path.stat().st_size for path in scene.files] + [0] * (scene.label is None)
                digest.update(repr((role, scene.name, *sizes, checksum)).encode())
        return digest.hexdigest()[:12]

    def check(self) -> dict[str, Any]:
        """Everything that can be wrong with the data, looked at before a run; what was found, for its record.

        Returns:
            `root`, `fingerprint`, `splits` (role -> scenes), `sizes` (role -> "HxW" or "mixed"), `warnings`, and
            what `describe` says of the labels.

        Raises:
            InputError: the first thing that is wrong.
        """
        splits = {role: self.scenes(role) for role in self.roles}
        warnings = self._check_overlap(splits)
        reports = {role: self.label_report(role) for role in splits}
        described = self.describe(reports)
        warnings += [f"{role}: {text}" for role, report in reports.items() for text in report.warnings]
        return {
            "root": str(self.root),
            "fingerprint": self.fingerprint,
            "splits": {role: len(scenes) for role, scenes in splits.items()},
            "sizes": {role: common_size(scenes) for role, scenes in splits.items()},
            **described,
            "warnings": warnings,
        }

    def dataset(
        self,
        split: str,
        augment: Callable[[Sample], Sample] | None = None,
        seed: int = 0,
        *,
        tiled: bool = False,
    ) -> SceneDataset:
        """The samples of a role or split: whole scenes, or with `tiled` the tiles of `tile` pixels if it is set."""
        self.label_report(split)
        scenes, read_label = self.scenes(split), self.label_reader(split)
        pixels = sum(height * width for height, width in (scene.size or (0, 0) for scene in scenes))
        small = pixels * (3 * len(self.inputs) + 1) < self.cache_mb * _MIB
        if (small if self.cache is None else self.cache) and split not in self._pictures:
            self._pictures[split] = Pictures(scenes, read_label)
        return SceneDataset(
            scenes,
            read_label,
            inputs=self.inputs,
            mean=self.mean,
            std=self.std,
            tile=self.tile if tiled else None,
            tile_overlap=self.tile_overlap,
            augment=augment,
            seed=seed,
            pictures=self._pictures.get(split),
        )

    def _check_overlap(self, splits: Mapping[str, Sequence[Scene]]) -> list[str]:
        found = overlaps(splits)
        shared: dict[tuple[str, str], list[str]] = {}
        for first, second, name, _ in found:
            shared.setdefault((first, second), []).append(name)
        texts = [
            f"{x} and {y} share {len(names)} files, first {names[0]}" for (x, y), names in shared.items()
        ]
        if texts and self.overlap == "refuse":
            raise InputError(
                "the same pictures are in two splits: " + "; ".join(texts),
                where=found[0][3],
                expected="splits without common files",
                do="remove them from one split (or set data.overlap=warn if you mean it, or a role to null)",
            )
        return texts


# Samples ---------------------------------------------------------------------------------------------------------


class SceneDataset(Dataset[Sample]):
    """Samples by number: each picture float32 (3, H, W) normalised under its name, `label` uint8 (H, W), `name` str.

    `dataset[epoch, index]` is augmented by draws that depend on (seed, epoch, index) only, so it is the same
    in every worker and after every resume; `dataset[index]` is the sample as it lies on disk. A scene without
    a label gives a sample without one.

    Raises:
        InputError: a file turns out to be damaged, or to have changed its label coding since it was checked.
    """

    def __init__(
        self,
        scenes: Iterable[Scene],
        read_label: LabelReader,
        *,
        inputs: Sequence[str],
        mean: tuple[float, ...],
        std: tuple[float, ...],
        tile: int | None = None,
        tile_overlap: int = 0,
        augment: Callable[[Sample], Sample] | None = None,
        seed: int = 0,
        pictures: Pictures | None = None,
    ):
        self.scenes, self.read_label, self.inputs, self.tile = list(scenes), read_label, tuple(inputs), tile
        self.augment, self.seed = augment, seed
        self.mean, self.std = (torch.tensor(x).view(3, 1, 1) for x in (mean, std))
        self._pictures = pictures
        self.units: list[tuple[int, tuple[int, int] | None]] = []
        for number, scene in enumerate(self.scenes):
            corners = grid(*(scene.size or (0, 0)), tile, tile - tile_overlap) if tile else [None]
            self.units += [(number, corner) for corner in corners]

    def __len__(self) -> int:
        return len(self.units)

    def __getitem__(self, key: int | tuple[int, int]) -> Sample:
        epoch, index = key if isinstance(key, tuple) else (None, key)
        number, corner = self.units[operator.index(index)]
        scene = self.scenes[number]
        pictures, label = (
            _decoded(scene, self.read_label) if self._pictures is None else self._pictures[number]
        )
        name = scene.name
        if self.tile and corner is not None:
            pictures = [_cut(picture, corner, self.tile) for picture in pictures]
            label = None if label is None else _cut(label, corner, self.tile)
            name = f"{name}@{corner[0]},{corner[1]}"
        sample: Sample = {input: tv_tensors.Image(x) for input, x in zip(self.inputs, pictures, strict=True)}
        if label is not None:
            sample["label"] = tv_tensors.Mask(label)
        if self.augment is not None and epoch is not None:
            with drawing_from(derive(self.seed, "augment", epoch, operator.index(index) % len(self))):
                sample = self.augment(sample)
        for input in self.inputs:
            picture = sample[input].as_subclass(Tensor)
            sample[input] = normalised(picture, self.mean, self.std)
        if label is not None:
            # A copy: what is handed out must not be the cache itself.
            sample["label"] = sample["label"].as_subclass(Tensor).clone(memory_format=torch.contiguous_format)
        return sample | {"name": name}


def normalised(picture: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """uint8 (3, H, W) as float32 fractions, less the mean and over the deviation of their channel, (3, 1, 1) each."""
    return ((picture.float() / 255 - mean) / std).contiguous()


class Pictures:
    """The decoded pictures of scenes, in one tensor however many there are.

    A tensor that is sent to a worker process costs an open file there; with one per picture a few hundred scenes
    would exceed what a system allows.

    Args:
        scenes: with their sizes known.

    Raises:
        InputError: a file is damaged, or has changed since the scenes were checked.
    """

    def __init__(self, scenes: Sequence[Scene], read_label: LabelReader):
        self.shapes = [
            (*(scene.size or (0, 0)), len(scene.pictures), scene.label is not None) for scene in scenes
        ]
        bytes_each = [
            height * width * (3 * count + labelled) for height, width, count, labelled in self.shapes
        ]
        self.starts = [0, *accumulate(bytes_each)]
        self.values = torch.empty(self.starts[-1], dtype=torch.uint8)

        def fill(number: int) -> None:
            scene = scenes[number]
            (places, label_place), (pictures, label) = self[number], _decoded(scene, read_label)
            for place, picture in zip([*places, label_place], [*pictures, label], strict=True):
                if place is None or picture is None:
                    continue
                if place.shape != picture.shape:
                    raise InputError(
                        f"{picture.shape[-2]}x{picture.shape[-1]} pixels, {place.shape[-2]}x{place.shape[-1]} before",
                        where=scene.pictures[0],
                        do="the file changed since it was checked",
                    )
                place.copy_(picture)

        in_threads(fill, range(len(scenes)))

    def __getitem__(self, number: int) -> Decoded:
        """Views: the pictures, each (3, H, W), and the label (H, W) or None."""
        height, width, count, labelled = self.shapes[number]
        pixels = self.values[self.starts[number] : self.starts[number + 1]].view(-1, height, width)
        pictures = [pixels[3 * n : 3 * n + 3] for n in range(count)]
        return pictures, pixels[3 * count] if labelled else None


def _decoded(scene: Scene, read_label: LabelReader) -> Decoded:
    """The files of a scene as uint8: pictures (3, H, W), label (H, W) of class numbers."""
    pictures = [torch.from_numpy(read_rgb(path)).permute(2, 0, 1).contiguous() for path in scene.pictures]
    return pictures, None if scene.label is None else torch.from_numpy(read_label(scene.label))


def _cut(x: Tensor, corner: tuple[int, int], size: int) -> Tensor:
    window = x[..., corner[0] : corner[0] + size, corner[1] : corner[1] + size]
    return pad_reflect(window, 0, size - window.shape[-2], 0, size - window.shape[-1])
