from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from anban.engine import checkpoint
from anban.errors import InputError


def test_round_trip(tmp_path: Path) -> None:
    file = tmp_path / "checkpoints" / "last.pt"
    checkpoint.save(file, {"step": 3, "state_dict": {"w": torch.ones(2)}})
    assert checkpoint.load(file)["step"] == 3
    assert [p.name for p in file.parent.iterdir()] == ["last.pt"]


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), RuntimeError("PytorchStreamWriter failed")]
)
def test_a_full_disk_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    file = tmp_path / "last.pt"
    checkpoint.save(file, {"step": 1})

    def fail(state: Any, handle: Any) -> None:
        handle.write(b"half of it")
        raise error

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(OSError, match=r"(?s)last\.pt could not be written.*previous checkpoint is untouched"):
        checkpoint.save(file, {"step": 2})
    monkeypatch.undo()
    assert checkpoint.load(file)["step"] == 1
    assert [p.name for p in tmp_path.iterdir()] == ["last.pt"]


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return (print, ("executed",))


def test_what_cannot_be_read_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "last.pt"
    with pytest.raises(InputError, match=r"(?s)no such checkpoint.*last\.pt"):
        checkpoint.load(file)
    checkpoint.save(file, {"step": 1, "w": torch.ones(1000)})
    file.write_bytes(file.read_bytes()[:500])
    with pytest.raises(InputError, match=r"(?s)cannot be read as a checkpoint.*last\.pt"):
        checkpoint.load(file)
    torch.save({"state_dict": {}}, file)
    with pytest.raises(InputError, match="not a checkpoint of a run"):
        checkpoint.load(file)
    file.write_bytes(pickle.dumps(Evil()))
    with pytest.raises(InputError):
        checkpoint.load(file)
    assert "executed" not in capsys.readouterr().out
