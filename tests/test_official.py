"""Loading official weights: containers, names, strictness, files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from anban.errors import InputError
from anban.official import CONTAINERS, Key, key_map, load_official, rename


class Renaming(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Conv2d(3, 2, 1)
        self.norm = nn.BatchNorm2d(2)

    def from_official(self, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return rename(state_dict, [(r"^last\.", "head."), (r"^bn(\d)\.", lambda match: "norm.")])


def released() -> dict[str, Tensor]:
    torch.manual_seed(3)
    state = Renaming().state_dict()
    return {
        name.replace("head.", "last.").replace("norm.", "bn7."): tensor + 1 for name, tensor in state.items()
    }


def loaded(model: nn.Module) -> bool:
    own = model.state_dict()
    return all(
        torch.equal(own[k.replace("last.", "head.").replace("bn7.", "norm.")], v)
        for k, v in released().items()
    )


def test_names_are_translated() -> None:
    model = Renaming()
    assert not loaded(model)
    load_official(model, released())
    assert loaded(model)


@pytest.mark.parametrize("container", CONTAINERS)
def test_containers_and_the_parallel_prefix_are_unwrapped(container: str) -> None:
    model = Renaming()
    load_official(model, {"epoch": 3, container: {f"module.{k}": v for k, v in released().items()}})
    assert loaded(model)


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".safetensors"])
def test_files_are_read(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"weights{suffix}"
    if suffix == ".safetensors":
        save_file(released(), path)
    else:
        torch.save({"state_dict": released(), "best": np.float64(0.9), "epoch": np.int64(3)}, path)
    model = Renaming()
    load_official(model, str(path))
    assert loaded(model)


def test_batch_counters_may_be_missing() -> None:
    model = Renaming()
    load_official(model, {k: v for k, v in released().items() if not k.endswith("num_batches_tracked")})
    assert model.norm.num_batches_tracked == 0
    assert torch.equal(model.head.weight, released()["last.weight"])


def test_missing_unexpected_and_misshapen_tensors_are_named_and_counted() -> None:
    state = released()
    del state["last.bias"]
    state |= {f"extra.{i}": torch.zeros(1) for i in range(6)} | {"last.weight": torch.zeros(5, 3, 1, 1)}
    model = Renaming()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(InputError) as error:
        load_official(model, state)
    message = str(error.value)
    assert "1 missing (head.bias)" in message
    assert "6 unexpected (extra.0, extra.1, extra.2, extra.3, ...)" in message
    assert "head.weight (5, 3, 1, 1) instead of (2, 3, 1, 1)" in message
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_unusable_files_are_one_message(tmp_path: Path) -> None:
    model = Renaming()
    with pytest.raises(InputError, match="does not exist"):
        load_official(model, tmp_path / "absent.pt")
    (tmp_path / "text.pt").write_text("no weights here")
    (tmp_path / "text.safetensors").write_text("no weights here")
    for name in ("text.pt", "text.safetensors"):
        with pytest.raises(InputError, match="cannot be read"):
            load_official(model, tmp_path / name)
    torch.save(Renaming(), tmp_path / "module.pt")
    with pytest.raises(InputError, match="cannot be read"):
        load_official(model, tmp_path / "module.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(InputError, match="holds a list"):
        load_official(model, tmp_path / "list.pt")
    with pytest.raises(InputError, match="no state dict found, but the keys: epoch, net"):
        load_official(model, {"epoch": 1, "net": {"a": 2}})


class Rebuilding(nn.Module):
    """Splits one official entry, joins two, keeps one, drops one and starts one with its own values."""

    def __init__(self) -> None:
        super().__init__()
        for name in ("query", "key", "both", "kept", "moved", "own", "unfilled"):
            self.register_buffer(name, torch.zeros(2, 2))

    def from_official(self, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        state = rename(state_dict, [("^old$", "moved")])
        query, key = state.pop("joint.weight").chunk(2)
        both = torch.stack([state.pop("there"), state.pop("back")]) * 2
        del state["unread"]
        assert torch.equal(state["moved"], torch.ones(1, 2, 2))  # values are there to be looked at
        moved = state["moved"].flatten(1).reshape(2, 2)
        return {**state, "query": query, "key": key, "both": both, "moved": moved, "own": self.own}


def test_the_key_map_tells_apart_what_became_of_an_entry() -> None:
    official = {
        "kept": torch.ones(2, 2),
        "old": torch.ones(1, 2, 2),
        "joint.weight": torch.ones(4, 2),
        "there": torch.ones(2),
        "back": torch.ones(2),
        "unread": torch.ones(1),
    }
    model = Rebuilding()
    assert key_map(model, {"state_dict": official}) == [
        Key("kept", "kept", "same"),
        Key("old", "moved", "renamed"),
        Key("joint.weight", "query", "split"),
        Key("joint.weight", "key", "split"),
        Key("there", "both", "joined"),
        Key("back", "both", "joined"),
        Key("unread", None, "dropped"),
        Key(None, "own", "own"),
        Key(None, "unfilled", "missing"),
    ]
    assert not model.kept.any(), "a map loads nothing"


def test_weights_that_do_not_fit_are_mapped_as_far_as_they_go() -> None:
    state = released()
    del state["last.bias"]
    lines = key_map(Renaming(), {**state, "extra": torch.zeros(1)})
    assert Key("last.weight", "head.weight", "renamed") in lines
    assert Key("extra", "extra", "unexpected") in lines
    assert Key(None, "head.bias", "missing") in lines
