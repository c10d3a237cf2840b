"""Checkpoints: written whole or not at all, read without executing anything.

A checkpoint is a `torch.save` of tensors and plain values. `state_dict` is the network that is evaluated (the
averaged one where there is an average), under the key other tools look for; the rest is what a resume needs.
"""

from __future__ import annotations

import contextlib
import os
import zipfile
from pathlib import Path
from typing import IO, Any, BinaryIO, cast

import torch
from loguru import logger

from anban.errors import InputError

FORMAT = "anban-checkpoint/1"

#: Where `train.non_finite: roll-back` goes back to: the state after the last validation.
ROLL_BACK = "roll-back.pt"


def save(path: Path, state: dict[str, Any]) -> None:
    """Write under a temporary name, reach the disk, then rename; a failure leaves the old file as it was.

    Raises:
        OSError: the disk is full or the folder cannot be written; the message names the file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.part")
    refused: list[OSError] = []
    try:
        with temporary.open("wb") as file:
            torch.save({"format": FORMAT, **state}, cast(IO[bytes], _Writer(file, refused)))
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:
        temporary.unlink(missing_ok=True)
        raise OSError(
            f"The checkpoint {path} could not be written: {refused[0] if refused else error}\n"
            f"  do:       free some space; the previous checkpoint is untouched and --resume goes on from it"
        ) from error


class _Writer:
    """A file that remembers why a write failed: torch only says at which byte."""

    def __init__(self, file: BinaryIO, refused: list[OSError]):
        self.file, self.refused = file, refused

    def write(self, data: Any) -> int:
        try:
            return self.file.write(data)
        except OSError as error:
            self.refused.append(error)
            raise

    def flush(self) -> None:
        self.file.flush()


def load(path: Path, device: str | torch.device = "cpu") -> dict[str, Any]:
    """Read a checkpoint that `save` wrote.

    Raises:
        InputError: missing, truncated, changed since it was written, or not one of ours.
    """
    if not path.is_file():
        raise InputError("There is no such checkpoint.", where=path)
    try:
        _verify(path)
        state = torch.load(path, map_location=device, weights_only=True)
    except Exception as error:  # the many ways a zip or pickle can be broken
        why = (str(error) or type(error).__name__).splitlines()[0]
        raise InputError(f"The file cannot be read as a checkpoint: {why}", where=path,
                         expected="a complete file written by anban (tensors and plain values only)",
                         do="evaluate another checkpoint of the run; anban run --resume goes on from the newest "
                            "complete one") from None  # fmt: skip
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise InputError("This is not a checkpoint of a run.", where=path, expected=f"format {FORMAT}",
                         do="for an official release's weights use anban.load_official")  # fmt: skip
    return state


def _verify(path: Path) -> None:
    """Compare the checksums: torch reads a tensor whose bytes have changed without a word."""
    if path.stat().st_size == 0:
        raise ValueError("the file is empty")
    with zipfile.ZipFile(path) as archive:
        # torch.save packs nothing: a file that unpacks to more than it is was made to fill the memory.
        if sum(part.file_size for part in archive.infolist()) > path.stat().st_size:
            raise ValueError("its parts are larger than the file")
        damaged = archive.testzip()
    if damaged is not None:
        raise ValueError(f"the checksum of its part {damaged} is wrong")


# The checkpoints of a run ---------------------------------------------------------------------------------------


def kept(folder: Path) -> list[Path]:
    """The checkpoints `step-N.pt` of a run's folder `checkpoints`, the latest first."""
    numbered = {file: file.stem.removeprefix("step-") for file in folder.glob("step-*.pt")}
    return sorted(
        (f for f, n in numbered.items() if n.isdigit()), key=lambda f: int(numbered[f]), reverse=True
    )


def newest(folder: Path, device: str | torch.device = "cpu") -> dict[str, Any] | None:
    """The state to go on from: `last.pt`, or where that is damaged the newest other one that is not.

    A damaged `last.pt` is set aside as `last.pt.damaged`.

    Returns:
        the state; None for a run that has not come to its first checkpoint.

    Raises:
        InputError: there are checkpoints, and none of them can be read.
    """
    refused: list[InputError] = []
    for file in (folder / "last.pt", folder / ROLL_BACK, *kept(folder)):
        if not file.is_file():
            continue
        try:
            state = load(file, device)
            if "modules" not in state:
                raise InputError("The checkpoint holds the evaluated weights alone, as best.pt does.", where=file,
                                 expected="one that training can go on from: last.pt or a step-N.pt")  # fmt: skip
        except InputError as error:
            logger.warning(f"passed over: {error}")
            refused.append(error)
            continue
        if refused:
            logger.warning(
                f"going on from {file.name} (step {state['step']}), the newest complete checkpoint"
            )
            with contextlib.suppress(
                FileNotFoundError
            ):  # it was not last.pt, or another process has been here
                os.replace(folder / "last.pt", folder / "last.pt.damaged")
        return state
    if refused:
        raise InputError(f"No checkpoint of the run can be read. {refused[0].what}", where=refused[0].where,
                         do="put back a copy of it, or start a new run; machine.keep_every keeps further ones to fall back on")  # fmt: skip
    return None
