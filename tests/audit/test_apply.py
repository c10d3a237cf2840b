"""Acting on an audit: lists, links, moves; nothing is deleted and everything can be taken back."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from anban.audit.apply import apply, undo
from anban.audit.limits import read_limits
from anban.errors import InputError
from tests.audit.test_run import checksums, run

CLEAN = read_limits()["clean"]
FIT = ["bad/called.png", "good/one.png", "good/other.jpg", "good/海报.png"]


@pytest.fixture
def out(collection: Path, tmp_path: Path) -> Path:
    run(collection, tmp_path / "out")
    return tmp_path / "out"


def test_the_list_names_what_is_fit(collection: Path, out: Path) -> None:
    assert apply("list", collection, out, CLEAN)["done"] == 4
    assert (out / "clean.txt").read_text(encoding="utf-8").splitlines() == FIT


def test_links_lead_to_what_is_fit_and_go_again(collection: Path, out: Path) -> None:
    before = checksums(collection)
    result = apply("link", collection, out, CLEAN)
    links = sorted(path for path in (out / "clean").rglob("*") if path.is_symlink())
    assert [str(path.relative_to(out / "clean")) for path in links] == FIT
    assert links[0].read_bytes() == (collection / FIT[0]).read_bytes()
    assert undo(Path(result["undo"])) == {"done": 4, "skipped": {}}
    assert not [path for path in (out / "clean").rglob("*") if path.is_symlink()]
    assert checksums(collection) == before


def files(tree: dict[str, str]) -> dict[str, str]:
    """Folders' times change when something moves out of them."""
    return {path: told for path, told in tree.items() if not told.endswith("folder")}


def test_the_unfit_move_aside_and_come_back(collection: Path, out: Path) -> None:
    before = checksums(collection)
    result = apply("move", collection, out, CLEAN)
    assert (result["done"], result["skipped"]) == (9, {})
    assert (out / "unfit" / "blurred" / "bad" / "soft.jpg").is_file()
    assert (out / "unfit" / "duplicate" / "copies" / "one copy.png").is_file()
    assert sorted(files(checksums(collection))) == FIT
    assert undo(Path(result["undo"])) == {"done": 9, "skipped": {}}
    assert files(checksums(collection)) == files(before)
    assert undo(Path(result["undo"])) == {"done": 0, "skipped": {}}


def test_what_has_changed_since_is_left_alone(collection: Path, out: Path) -> None:
    (collection / "bad" / "soft.jpg").write_bytes(b"another")
    result = apply("move", collection, out, CLEAN)
    assert result["skipped"] == {"bad/soft.jpg": "it has changed since the audit"}
    assert (collection / "bad" / "soft.jpg").read_bytes() == b"another"


def test_nothing_is_overwritten(collection: Path, out: Path) -> None:
    taken = out / "unfit" / "blurred" / "bad" / "soft.jpg"
    taken.parent.mkdir(parents=True)
    taken.write_bytes(b"mine")
    result = apply("move", collection, out, CLEAN)
    assert result["skipped"] == {"bad/soft.jpg": "the place is taken"}
    assert taken.read_bytes() == b"mine"
    (collection / "bad" / "small.png").write_bytes(b"new")  # somebody has put another in its place
    back = undo(Path(result["undo"]))
    assert list(back["skipped"].values()) == ["something else stands in its place"]
    assert (collection / "bad" / "small.png").read_bytes() == b"new"
    assert (out / "unfit" / "low_resolution" / "bad" / "small.png").is_file()


def test_a_move_that_was_killed_can_be_taken_back(
    collection: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = files(checksums(collection))
    rename, count = Path.rename, 0

    def killed(self: Path, target: Path) -> Path:
        nonlocal count
        count += 1
        if count == 4:
            raise KeyboardInterrupt
        return rename(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", killed)
        with pytest.raises(KeyboardInterrupt):
            apply("move", collection, out, CLEAN)
    (log,) = out.glob("undo-*.jsonl")
    with open(log, "a", encoding="utf-8") as file:
        file.write('{"from": "/cut o')
    assert undo(log)["done"] == 3
    assert files(checksums(collection)) == before


def test_other_problems_can_be_tolerated(collection: Path, out: Path) -> None:
    from anban.audit.telling import Limits

    assert (
        apply("list", collection, out, Limits(["duplicate"]))["done"] == 7
    )  # what cannot be decoded is never fit


def test_bad_input_is_refused(collection: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no audit"):
        apply("list", collection, tmp_path / "nowhere", CLEAN)
    wrong = tmp_path / "wrong.jsonl"
    for text in ("", "[]\n", json.dumps({"way": "move"})[:-1]):
        wrong.write_text(text, encoding="utf-8")
        with pytest.raises(InputError, match="no undo file"):
            undo(wrong)
