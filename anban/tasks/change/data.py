"""A change data set as a recipe names it: files on disk -> checked splits -> samples for a network.

Shapes: H, W pixels of a scene (of a tile, when training on tiles).
"""

from __future__ import annotations

import hashlib
import operator
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from annotated_types import Ge
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import tv_tensors

from anban.data.draws import derive, drawing_from
from anban.data.images import read_label, read_rgb
from anban.data.tiles import grid, pad_reflect
from anban.errors import InputError
from anban.recipe.schema import Count, Positive
from anban.tasks.change.labels import Coding, LabelReport, decode_label, sniff_labels
from anban.tasks.change.layouts import LayoutName, Pair, find_layout, find_pairs, in_threads

ROLES = ("train", "val", "test")

_MIB = 2**20
_BYTES_PER_PIXEL = 7  # two dates of three bytes and a label of one

Decoded = tuple[Tensor, Tensor, Tensor | None]


class ChangeData:
    """The section `data` of a recipe. Nothing is read before it is asked for.

    Args:
        root: the data set's folder; relative paths start at the current folder, `~` is the home folder.
        layout: how the folder is laid out; "auto" looks. See `anban.tasks.change.layouts`.
        labels: coding of the labels; "auto" reads them all and says what it found, a name insists on it.
        train, val, test: the split used in each role: a split's name, or the path of a list file (ending in
            .txt). Null leaves the role out.
        limit: use at most this many pairs of a split, evenly spaced through their sorted names.
        tile: train on tiles of this many pixels instead of whole scenes. Evaluation always sees whole scenes.
        tile_overlap: pixels that neighbouring tiles share.
        mean, std: of the pixel values as fractions 0..1, per channel; ImageNet's by default.
        cache: keep decoded pictures in memory; null does so for splits below `cache_mb`.
        cache_mb: the size in MiB that null stands for.
        overlap: what to do when a file is in two splits.
    """

    def __init__(
        self,
        root: str,
        layout: LayoutName = "auto",
        labels: Coding = "auto",
        train: str | None = "train",
        val: str | None = "val",
        test: str | None = "test",
        limit: Count | None = None,
        tile: Count | None = None,
        tile_overlap: Annotated[int, Ge(0)] = 0,
        mean: tuple[float, float, float] = (0.485, 0.456, 0.406),
        std: tuple[Positive, Positive, Positive] = (0.229, 0.224, 0.225),
        cache: bool | None = None,
        cache_mb: Annotated[int, Ge(0)] = 1024,
        overlap: Literal["refuse", "warn"] = "refuse",
    ):
        if tile is not None and tile_overlap >= tile:
            raise InputError(
                f"tiles of {tile} pixels that share {tile_overlap}",
                where="data.tile_overlap",
                expected=f"0 to {tile - 1} pixels",
            )
        self.root = Path(root).expanduser().absolute()
        self.layout, self.coding = layout, labels
        self.roles = {r: s for r, s in {"train": train, "val": val, "test": test}.items() if s is not None}
        self.limit, self.tile, self.tile_overlap = limit, tile, tile_overlap
        self.mean, self.std = tuple(mean), tuple(std)
        self.cache, self.cache_mb, self.overlap = cache, cache_mb, overlap
        self._pairs: dict[str, list[Pair]] = {}
        self._reports: dict[str, LabelReport] = {}
        self._pictures: dict[str, Pictures] = {}

    def pairs(self, split: str) -> list[Pair]:
        """The pairs of a role ("train", "val", "test") or of any other split, checked by their headers.

        Raises:
            InputError: a role that is null; and see `anban.tasks.change.layouts.find_pairs`.
        """
        if split in ROLES and split not in self.roles:
            raise InputError(
                f"The role '{split}' is left out: data.{split} is null.",
                where=f"data.{split}",
                expected="a split's name or a list file, since this split is asked for",
                do=f"set data.{split}, or ask for one of {', '.join(self.roles) or 'the splits of the folder'}",
            )
        if split not in self._pairs:
            pairs = find_pairs(self.root, self.roles.get(split, split), self.layout)
            self._pairs[split] = _spread(pairs, self.limit)
        return self._pairs[split]

    def label_report(self, split: str) -> LabelReport:
        """What the labels of a split hold; see `sniff_labels`, which may refuse them."""
        if split not in self._reports:
            self._reports[split] = sniff_labels(self.pairs(split), self.coding)
        return self._reports[split]

    @property
    def fingerprint(self) -> str:
        """12 hex digits that tell whether two runs saw the same data.

        They cover, per role: the names of the pairs used, the size in bytes of each file, and a checksum of
        every label. Pictures are not read, so one edited without changing its size goes unnoticed; where the
        data lie and how the splits are called does not matter.
        """
        digest = hashlib.sha256()
        for role in self.roles:
            pairs = self.pairs(role)
            checksums = in_threads(lambda p: zlib.crc32(p.label.read_bytes()) if p.label else 0, pairs)
            for pair, checksum in zip(pairs, checksums, strict=True):
                digest.update(repr((role, pair.name, *_bytes(pair), checksum)).encode())
        return digest.hexdigest()[:12]

    def check(self) -> dict[str, Any]:
        """Everything that can be wrong with the data, looked at before a run; what was found, for its record.

        Returns:
            `root`, `layout`, `fingerprint`, `labels` (coding), `splits` (role -> pairs), `foreground` (role
            -> share of change, 0..1), `unchanged` (role -> pairs without change), `sizes` (role -> "HxW" or
            "mixed") and `warnings`.

        Raises:
            InputError: the first thing that is wrong.
        """
        layout = find_layout(self.root, self.layout).kind
        splits = {role: self.pairs(role) for role in self.roles}
        warnings = self._check_overlap(splits)
        reports = {role: self.label_report(role) for role in splits}
        coding = self._one_coding(reports)
        warnings += [f"{role}: {text}" for role, report in reports.items() for text in report.warnings]
        return {
            "root": str(self.root),
            "layout": layout,
            "fingerprint": self.fingerprint,
            "labels": coding,
            "splits": {role: len(pairs) for role, pairs in splits.items()},
            "foreground": {role: report.foreground for role, report in reports.items()},
            "unchanged": {role: len(report.empty) for role, report in reports.items()},
            "sizes": {role: common_size(pairs) for role, pairs in splits.items()},
            "warnings": warnings,
        }

    def dataset(
        self,
        split: str,
        augment: Callable[[dict[str, Any]], dict[str, Any]] | None = None,
        seed: int = 0,
        *,
        tiled: bool = False,
    ) -> ChangeDataset:
        """The samples of a role or split: whole scenes, or with `tiled` the tiles of `tile` pixels if it is set."""
        pairs, coding = self.pairs(split), self.label_report(split).coding
        pixels = sum(height * width for height, width in (pair.size or (0, 0) for pair in pairs))
        keep = self.cache if self.cache is not None else pixels * _BYTES_PER_PIXEL < self.cache_mb * _MIB
        if keep and split not in self._pictures:
            self._pictures[split] = Pictures(pairs, coding)
        return ChangeDataset(
            pairs,
            coding,
            mean=self.mean,
            std=self.std,
            tile=self.tile if tiled else None,
            tile_overlap=self.tile_overlap,
            augment=augment,
            seed=seed,
            pictures=self._pictures.get(split),
        )

    def _check_overlap(self, splits: Mapping[str, list[Pair]]) -> list[str]:
        found = list(overlaps(splits))
        if not found:
            return []
        shared: dict[tuple[str, str], list[str]] = {}
        for first, second, name, _ in found:
            shared.setdefault((first, second), []).append(name)
        texts = [
            f"{x} and {y} share {len(names)} files, first {names[0]}" for (x, y), names in shared.items()
        ]
        if self.overlap == "refuse":
            raise InputError(
                "the same pictures are in two splits: " + "; ".join(texts),
                where=found[0][3],
                expected="splits without common files",
                do="remove them from one split (or set data.overlap=warn if you mean it, or a role to null)",
            )
        return texts

    def _one_coding(self, reports: Mapping[str, LabelReport]) -> str:
        codings = {role: report.coding for role, report in reports.items()}
        if "0/1" in codings.values() and set(codings.values()) != {"0/1"}:
            raise InputError(
                "the splits code their labels differently: "
                + ", ".join(f"{r} {c}" for r, c in codings.items()),
                where=self.root,
                expected="one coding",
                do="write the labels of all splits as 0 and 255",
            )
        return "soft" if "soft" in codings.values() else next(iter(codings.values()), "auto")


class ChangeDataset(Dataset[dict[str, Any]]):
    """Samples by number: `a`, `b` float32 (3, H, W) normalised, `label` uint8 (H, W) 0/1, `name` str.

    `dataset[epoch, index]` is augmented by draws that depend on (seed, epoch, index) only, so it is the same
    in every worker and after every resume; `dataset[index]` is the sample as it lies on disk. A pair without
    a label gives a sample without one.

    Raises:
        InputError: a file turns out to be damaged, or to have changed its label coding since it was checked.
    """

    def __init__(
        self,
        pairs: Iterable[Pair],
        coding: str,
        *,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        tile: int | None = None,
        tile_overlap: int = 0,
        augment: Callable[[dict[str, Any]], dict[str, Any]] | None = None,
        seed: int = 0,
        pictures: Pictures | None = None,
    ):
        self.pairs, self.coding, self.tile = list(pairs), coding, tile
        self.augment, self.seed = augment, seed
        self.mean, self.std = (torch.tensor(x).view(3, 1, 1) for x in (mean, std))
        self._pictures = pictures
        self.units: list[tuple[int, tuple[int, int] | None]] = []
        for number, pair in enumerate(self.pairs):
            corners = grid(*(pair.size or (0, 0)), tile, tile - tile_overlap) if tile else [None]
            self.units += [(number, corner) for corner in corners]

    def __len__(self) -> int:
        return len(self.units)

    def __getitem__(self, key: int | tuple[int, int]) -> dict[str, Any]:
        epoch, index = key if isinstance(key, tuple) else (None, key)
        number, corner = self.units[operator.index(index)]
        pair = self.pairs[number]
        a, b, label = _decode(pair, self.coding) if self._pictures is None else self._pictures[number]
        name = pair.name
        if self.tile and corner is not None:
            a, b = (_cut(x, corner, self.tile) for x in (a, b))
            label = None if label is None else _cut(label, corner, self.tile)
            name = f"{name}@{corner[0]},{corner[1]}"
        sample: dict[str, Any] = {"a": tv_tensors.Image(a), "b": tv_tensors.Image(b)}
        if label is not None:
            sample["label"] = tv_tensors.Mask(label)
        if self.augment is not None and epoch is not None:
            with drawing_from(derive(self.seed, "augment", epoch, operator.index(index) % len(self))):
                sample = self.augment(sample)
        for date in ("a", "b"):
            picture = sample[date].as_subclass(Tensor)
            sample[date] = ((picture.float() / 255 - self.mean) / self.std).contiguous()
        if label is not None:
            # A copy: what is handed out must not be the cache itself.
            sample["label"] = sample["label"].as_subclass(Tensor).clone(memory_format=torch.contiguous_format)
        return sample | {"name": name}


class Pictures:
    """The decoded pictures of pairs, in one tensor however many there are.

    A tensor that is sent to a worker process costs an open file there; with one per picture a few hundred pairs
    would exceed what a system allows.

    Args:
        pairs: with their sizes known.

    Raises:
        InputError: a file is damaged, or has changed since the pairs were checked.
    """

    def __init__(self, pairs: Sequence[Pair], coding: str):
        self.shapes = [(*(pair.size or (0, 0)), pair.label is not None) for pair in pairs]
        bytes_each = [height * width * (7 if labelled else 6) for height, width, labelled in self.shapes]
        self.starts = [0, *accumulate(bytes_each)]
        self.values = torch.empty(self.starts[-1], dtype=torch.uint8)

        def fill(number: int) -> None:
            for place, picture in zip(self[number], _decode(pairs[number], coding), strict=True):
                if place is None or picture is None:
                    continue
                if place.shape != picture.shape:
                    raise InputError(
                        f"{picture.shape[-2]}x{picture.shape[-1]} pixels, {place.shape[-2]}x{place.shape[-1]} before",
                        where=pairs[number].a,
                        do="the file changed since it was checked",
                    )
                place.copy_(picture)

        in_threads(fill, range(len(pairs)))

    def __getitem__(self, number: int) -> Decoded:
        """Views: a, b (3, H, W), label (H, W) or None."""
        height, width, labelled = self.shapes[number]
        pixels = self.values[self.starts[number] : self.starts[number + 1]].view(-1, height, width)
        return pixels[:3], pixels[3:6], pixels[6] if labelled else None


def overlaps(splits: Mapping[str, list[Pair]]) -> list[tuple[str, str, str, Path]]:
    """Pictures that two splits share, by content: (first split, second split, name in the second, its path).

    A pair is shared when both dates are equal byte for byte. Only files of equal size are read.
    """
    members = [(split, pair) for split, pairs in splits.items() for pair in pairs]
    by_size: dict[tuple[int, ...], list[tuple[str, Pair]]] = {}
    for split, pair in members:
        by_size.setdefault(_bytes(pair)[:2], []).append((split, pair))
    suspects = [
        entry for group in by_size.values() if len({split for split, _ in group}) > 1 for entry in group
    ]
    contents = in_threads(lambda entry: _content(entry[1]), suspects)
    seen: dict[bytes, tuple[str, Pair]] = {}
    found = []
    for (split, pair), content in zip(suspects, contents, strict=True):
        first, _ = seen.setdefault(content, (split, pair))
        if first != split:
            found.append((first, split, pair.name, pair.a))
    return found


def common_size(pairs: Iterable[Pair]) -> str:
    """ "HxW" when all pairs are of one size, else "mixed"."""
    sizes = {pair.size for pair in pairs}
    size = next(iter(sizes)) if len(sizes) == 1 else None
    return f"{size[0]}x{size[1]}" if size else "mixed"


def _spread(pairs: list[Pair], limit: int | None) -> list[Pair]:
    if limit is None or limit >= len(pairs):
        return pairs
    return [pairs[i * len(pairs) // limit] for i in range(limit)]


def _bytes(pair: Pair) -> tuple[int, ...]:
    return tuple(path.stat().st_size if path else 0 for path in (pair.a, pair.b, pair.label))


def _content(pair: Pair) -> bytes:
    digest = hashlib.blake2b(pair.a.read_bytes(), digest_size=16)
    digest.update(pair.b.read_bytes())
    return digest.digest()


def _decode(pair: Pair, coding: str) -> Decoded:
    """The files of a pair as uint8: a, b (3, H, W), label (H, W) of 0 and 1."""
    a, b = (torch.from_numpy(read_rgb(path)).permute(2, 0, 1).contiguous() for path in (pair.a, pair.b))
    if pair.label is None:
        return a, b, None
    values = read_label(pair.label)
    if coding == "0/1" and values.max() > 1:
        raise InputError(
            f"value {values.max()} in a 0/1 label",
            where=pair.label,
            do="the file changed since it was checked",
        )
    return a, b, torch.from_numpy(decode_label(values, coding))


def _cut(x: Tensor, corner: tuple[int, int], size: int) -> Tensor:
    window = x[..., corner[0] : corner[0] + size, corner[1] : corner[1] + size]
    return pad_reflect(window, 0, size - window.shape[-2], 0, size - window.shape[-1])
