"""Checkpoints: written whole or not at all, read without executing anything.

A checkpoint is a `torch.save` of tensors and plain values. `state_dict` is the network that is evaluated (the
averaged one where there is an average), under the key other tools look for; the rest is what a resume needs.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from anban.errors import InputError

FORMAT = "anban-checkpoint/1"


def save(path: Path, state: dict[str, Any]) -> None:
    """Write under a temporary name, reach the disk, then rename; a failure leaves the old file as it was.

    Raises:
        OSError: the disk is full or the folder cannot be written; the message names the file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.part")
    try:
        with temporary.open("wb") as file:
            torch.save({"format": FORMAT, **state}, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:  # torch reports a short write as RuntimeError
        temporary.unlink(missing_ok=True)
        raise OSError(
            f"The checkpoint {path} could not be written: {error}\n"
            f"  do:       free some space; the previous checkpoint is untouched and --resume goes on from it"
        ) from error


def load(path: Path, device: str | torch.device = "cpu") -> dict[str, Any]:
    """Read a checkpoint that `save` wrote.

    Raises:
        InputError: missing, truncated, or not one of ours.
    """
    if not path.is_file():
        raise InputError("There is no such checkpoint.", where=path)
    try:
        state = torch.load(path, map_location=device, weights_only=True)
    except Exception as error:  # the many ways a zip or pickle can be broken
        raise InputError(f"The file cannot be read as a checkpoint: {str(error).splitlines()[0]}", where=path,
                         expected="a complete file written by anban (tensors and plain values only)",
                         do="evaluate another checkpoint of the run; to train on, copy a step-N.pt over last.pt") from None  # fmt: skip
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise InputError("This is not a checkpoint of a run.", where=path, expected=f"format {FORMAT}",
                         do="for an official release's weights use anban.load_official")  # fmt: skip
    return state
