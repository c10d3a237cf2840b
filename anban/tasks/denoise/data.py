"""The section `data` of a denoising recipe: which slices, in which window of Hounsfield units, scaled how, cut how."""

from __future__ import annotations

import hashlib
import operator
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import torch
from annotated_types import Ge, Len
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import tv_tensors

from anban.data.augment import Augment, integer
from anban.data.draws import derive, drawing_from
from anban.data.scenes import in_threads
from anban.errors import InputError
from anban.recipe.schema import Count
from anban.tasks.denoise.layouts import Pair, find_layout
from anban.tasks.denoise.readers import DICOM, Coding, read_hounsfield, sniff_coding
from anban.tasks.denoise.scale import Scale

ROLES = ("train", "val", "test")
Sample = dict[str, Any]
Normalisation = Literal["range", "deviation", "variance"]
Chosen = Annotated[list[str], Len(1)] | None


class Doses(NamedTuple):
    """One slice at both doses, (1, H, W) each, float32 in Hounsfield units as stored."""

    low: Tensor
    full: Tensor


@dataclass(frozen=True)
class Preparation:
    """From a slice at both doses to what the network sees.

    Attributes:
        clip: lowest and highest Hounsfield unit that are kept.
        normalisation: see `DenoiseData`.
    """

    clip: tuple[float, float]
    normalisation: Normalisation

    def __call__(self, doses: Doses) -> tuple[Tensor, Tensor, Scale]:
        """The noisy and the clean slice (1, H, W), and the scale that takes them back to Hounsfield units."""
        low, full = (x.clamp(*self.clip) for x in doses)
        if self.normalisation == "range":
            scale = Scale(self.clip[0], self.clip[1] - self.clip[0])
        else:
            scale = Scale.of(low, by=self.normalisation)
        return scale.apply(low), scale.apply(full), scale


class DenoiseData:
    """The slices of a folder, by role. Nothing is read before it is asked for.

    Args:
        root: the data set's folder, see `anban.tasks.denoise.layouts`.
        train, val, test: what plays this role: names of patients, of splits that the folder has, or patterns of slice
            names such as `l506_png16/*`; null leaves the role out.
        values: what the numbers of TIFF, PNG and NPY files mean (see `anban.tasks.denoise.readers`); "auto" looks at
            the first file of each suffix. DICOM files say it themselves.
        clip: lowest and highest Hounsfield unit that the network sees, in the noisy and in the clean slice.
        normalisation: "range" brings the clipped range to 0..1; "deviation" subtracts the noisy slice's mean and
            divides by its standard deviation; "variance" divides by its variance instead, as CNCL's code does.
        patch: side of the training patches in pixels; null trains on whole slices.
        patches: patches of a slice per epoch, each at a place of its own.
        limit: use at most this many slices of a role, evenly spaced.
        leak: what to do when a patient is in two roles.
        cache_mb: slices of a role are kept in memory up to this many MiB.
    """

    def __init__(
        self,
        root: str,
        train: Chosen = ["train"],  # noqa: B006
        val: Chosen = ["val"],  # noqa: B006
        test: Chosen = ["test"],  # noqa: B006
        values: Literal["auto", "hu", "hu+1024", "unit"] = "auto",
        clip: tuple[float, float] = (-1024.0, 3072.0),
        normalisation: Normalisation = "range",
        patch: Annotated[int, Ge(16)] | None = 64,
        patches: Count = 8,
        limit: Count | None = None,
        leak: Literal["refuse", "warn"] = "refuse",
        cache_mb: Annotated[int, Ge(0)] = 1024,
    ):
        if clip[0] >= clip[1]:
            raise InputError(f"A window from {clip[0]:g} to {clip[1]:g} HU.", where="data.clip",
                             expected="the lower end first")  # fmt: skip
        self.root, self.values, self.clip = root, values, (clip[0], clip[1])
        self.roles: dict[str, Sequence[str]] = {
            role: chosen for role, chosen in zip(ROLES, (train, val, test), strict=True) if chosen
        }
        self.prepare = Preparation(self.clip, normalisation)
        self.patch, self.patches = patch, patches
        self.limit, self.leak, self.cache_mb = limit, leak, cache_mb
        self._found: list[Pair] | None = None
        self._slices: dict[str, Slices] = {}
        self._codings: dict[str, Coding] = {}

    @property
    def found(self) -> list[Pair]:
        """Every pair below the root.

        Raises:
            InputError: a file without its counterpart or otherwise unfit, and DICOM files of two photometric
                interpretations.
        """
        if self._found is None:
            layout = find_layout(self.root)
            if layout.problems:
                raise layout.problems[0]
            refuse_mixed(layout.pairs)
            self._found = layout.pairs
        return self._found

    def pairs(self, split: str) -> list[Pair]:
        """The pairs of a role, sorted by name; of a patient, split or pattern where `split` is no role.

        Raises:
            InputError: a role that is left out, or a choice that fits nothing.
        """
        if split in ROLES and split not in self.roles:
            raise InputError(f"The role '{split}' is left out: data.{split} is null.", where=f"data.{split}",
                             expected="patients, since this split is asked for",
                             do=f"set data.{split}, or ask for one of {', '.join(self.roles)}")  # fmt: skip
        chosen = []
        for choice in self.roles.get(split, [split]):
            fitting = [p for p in self.found if choice in (p.patient, p.split) or fnmatchcase(p.name, choice)]
            if not fitting:
                raise InputError(f"'{choice}' fits no slice.", where=f"data.{split} in {self.root}",
                                 expected="patients: " + ", ".join(patients_of(self.found)) + "; splits: "
                                 + (", ".join(sorted({p.split for p in self.found if p.split})) or "none")
                                 + f"; or a pattern of names such as {self.found[0].name}",
                                 do=f"set data.{split}=[...]")  # fmt: skip
            chosen += fitting
        unique = sorted(dict.fromkeys(chosen), key=lambda pair: pair.name)
        if self.limit is not None and self.limit < len(unique):
            unique = [unique[i * len(unique) // self.limit] for i in range(self.limit)]
        return unique

    def slices(self, split: str) -> Slices:
        """The slices of a role, read when they are asked for."""
        if split not in self._slices:
            pairs = self.pairs(split)
            self._slices[split] = Slices(pairs, list(map(self.codings_of, pairs)), self.cache_mb)
        return self._slices[split]

    def coding_of(self, file: Path) -> Coding:
        """What the values of a file mean; with "auto" the first file of a suffix decides for all."""
        suffix = file.suffix.lower()
        if suffix in DICOM:
            return "hu"
        if self.values != "auto":
            return self.values
        if suffix not in self._codings:
            self._codings[suffix] = sniff_coding(file)
        return self._codings[suffix]

    def codings_of(self, pair: Pair) -> tuple[Coding, Coding]:
        """The codings of both files of a pair."""
        return self.coding_of(pair.low), self.coding_of(pair.full)

    def check(self) -> dict[str, Any]:
        """Everything that can be wrong with the data, looked at before a run; what was found, for its record.

        Returns:
            `root`, `fingerprint` (names, sizes and contents of all slices), `splits` (role -> slices), `patients` (role
            -> names), `sizes` (role -> "HxW" or "mixed"), `values` (suffix -> coding), `clip`, `normalisation` and
            `warnings`.

        Raises:
            InputError: the first thing that is wrong: every slice of every role is read.
        """
        pairs = {role: self.pairs(role) for role in self.roles}
        warnings = leaks(pairs)
        if warnings and self.leak == "refuse":
            raise InputError(warnings[0], where=self.root, expected="roles without a common patient or slice",
                             do="move the patient to one role (or set data.leak=warn if you mean it)")  # fmt: skip
        unknown = [pair.name for role in pairs.values() for pair in role if pair.patient is None]
        if unknown:
            warnings.append(f"the patient of {len(unknown)} slices is not known, first {unknown[0]}: a leak between "
                            "roles cannot be seen there")  # fmt: skip
        digest = hashlib.sha256()
        for role in pairs:
            sizes = self.slices(role).check()
            for pair, size in zip(pairs[role], sizes, strict=True):
                contents = [zlib.crc32(file.read_bytes()) for file in (pair.low, pair.full)]
                digest.update(repr((role, pair.name, size, *contents)).encode())
        return {
            "root": str(self.root),
            "fingerprint": digest.hexdigest()[:12],
            "splits": {role: len(found) for role, found in pairs.items()},
            "patients": {role: patients_of(found) for role, found in pairs.items()},
            "sizes": {role: self.common_size(role) for role in pairs},
            "values": {"DICOM": "rescale tags"} if not self._codings else dict(self._codings),
            "clip": list(self.clip),
            "normalisation": self.prepare.normalisation,
            "warnings": warnings,
        }

    def common_size(self, split: str) -> str:
        """ "HxW" when all slices of a split are of one size, else "mixed"."""
        sizes = set(self.slices(split).check())
        height, width = next(iter(sizes))
        return f"{height}x{width}" if len(sizes) == 1 else "mixed"

    def dataset(self, split: str, augment: Augment | None = None, seed: int = 0) -> SliceDataset:
        """The samples of a role: whole slices, or with `augment` as many drawn patches as the section says."""
        return SliceDataset(self.slices(split), self.prepare, augment, seed, self.patch, self.patches)


class Slices:
    """The slices of some pairs by number, kept in memory as far as there is room."""

    def __init__(self, pairs: Sequence[Pair], codings: Sequence[tuple[Coding, Coding]], cache_mb: int):
        self.pairs, self.codings = list(pairs), list(codings)
        self._room = cache_mb * 2**20
        self._kept: dict[int, Doses] = {}
        self._sizes: list[tuple[int, int]] | None = None

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, number: int) -> Doses:
        if number in self._kept:
            return self._kept[number]
        doses = read_pair(self.pairs[number], self.codings[number])
        needed = doses.low.nbytes + doses.full.nbytes
        if needed <= self._room:
            self._room -= needed
            self._kept[number] = doses
        return doses

    def check(self) -> list[tuple[int, int]]:
        """Read every slice; their sizes (height, width)."""
        if self._sizes is None:
            shapes = in_threads(lambda number: self[number].low.shape, range(len(self)))
            self._sizes = [(height, width) for _, height, width in shapes]
        return self._sizes


class SliceDataset(Dataset[Sample]):
    """Samples by number: `noisy` and `clean` (1, H, W) float32 as the network sees them; `mean` and `divisor`, by which
    a value is taken back to Hounsfield units (value * divisor + mean); `name` and `patient` ("" if it is not known).

    `dataset[epoch, index]` is a patch, drawn and augmented as (seed, epoch, index) has it and nothing else, the same
    in every worker and after every resume; `dataset[index]` is the whole slice.
    """

    def __init__(
        self,
        slices: Slices,
        prepare: Preparation,
        augment: Augment | None,
        seed: int,
        patch: int | None,
        patches: int,
    ):
        self.slices, self.prepare, self.augment, self.seed = slices, prepare, augment, seed
        self.patch, self.patches = patch, patches if augment is not None and patch is not None else 1
        smallest = min(min(size) for size in slices.check())
        if augment is not None and patch is not None and smallest < patch:
            raise InputError(f"A slice has a side of {smallest} pixels.", where="data.patch",
                             expected=f"at least {patch} in every slice", do=f"set data.patch={smallest}")  # fmt: skip

    def __len__(self) -> int:
        return len(self.slices) * self.patches

    def __getitem__(self, key: int | tuple[int, int]) -> Sample:
        epoch, index = key if isinstance(key, tuple) else (None, key)
        number = operator.index(index) // self.patches
        noisy, clean, scale = self.prepare(self.slices[number])
        if self.augment is not None and epoch is not None:
            with drawing_from(derive(self.seed, "augment", epoch, operator.index(index))):
                noisy, clean = self._drawn(noisy, clean, self.augment)
        pair = self.slices.pairs[number]
        return {
            "noisy": noisy,
            "clean": clean,
            "mean": scale.mean,
            "divisor": scale.divisor,
            "name": pair.name,
            "patient": pair.patient or "",
        }

    def _drawn(self, noisy: Tensor, clean: Tensor, augment: Augment) -> tuple[Tensor, Tensor]:
        if self.patch is not None:
            top, left = (integer(side - self.patch + 1) for side in noisy.shape[-2:])
            window = (..., slice(top, top + self.patch), slice(left, left + self.patch))
            noisy, clean = noisy[window], clean[window]
        pictures = augment({"noisy": tv_tensors.Image(noisy), "clean": tv_tensors.Image(clean)})
        return tuple(pictures[name].as_subclass(Tensor).contiguous() for name in ("noisy", "clean"))  # type: ignore[return-value]


def read_pair(pair: Pair, codings: tuple[Coding, Coding]) -> Doses:
    """A slice at both doses, whose files have these codings.

    Raises:
        InputError: see `read_hounsfield`; and two sizes.
    """
    low, full = (
        torch.from_numpy(read_hounsfield(file, coding))[None]
        for file, coding in zip((pair.low, pair.full), codings, strict=True)
    )
    if low.shape != full.shape:
        raise InputError(f"Low dose has {tuple(low.shape[1:])} pixels, full dose {tuple(full.shape[1:])}.",
                         where=pair.low, expected="one size", do="resample one of them")  # fmt: skip
    return Doses(low, full)


def patients_of(pairs: Sequence[Pair]) -> list[str]:
    """The known patients, sorted."""
    return sorted({pair.patient for pair in pairs if pair.patient})


def leaks(roles: Mapping[str, Sequence[Pair]]) -> list[str]:
    """Which patients, and which slices of unknown ones, are in two roles, as sentences."""
    texts = []
    seen: dict[str, str] = {}
    for role, pairs in roles.items():
        keys = sorted({f"patient {pair.patient}" if pair.patient else f"slice {pair.name}" for pair in pairs})
        for key in keys:
            if key in seen:
                texts.append(
                    f"{key} is in '{seen[key]}' and in '{role}': scores would not be of an unseen patient"
                )
            else:
                seen[key] = role
    return texts


def refuse_mixed(pairs: Sequence[Pair]) -> None:
    """Raise InputError where DICOM files of two photometric interpretations are together."""
    kinds = {pair.photometric: pair for pair in pairs if pair.photometric}
    if len({kind for each in kinds for kind in each.split("/")}) > 1:
        raise InputError(f"DICOM files of mixed photometric interpretation: {', '.join(sorted(kinds))}.",
                         where=next(iter(kinds.values())).low, expected="one for all, as MONOCHROME2",
                         do="export the series again from one source, or leave one out")  # fmt: skip
