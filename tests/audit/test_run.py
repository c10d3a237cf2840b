"""The pipeline: what is found, that nothing is touched, that a killed or repeated pass ends with the same findings."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from anban.audit import launchers
from anban.audit import run as pipeline
from anban.audit.finding import Finding
from anban.audit.look import Plan, Seen, look
from anban.audit.run import Audit, audit
from anban.audit.walk import File, Folder, walk
from anban.errors import InputError
from tests.audit.conftest import encoded, scene


def run(root: Path, out: Path, **options: Any) -> dict[str, Any]:
    return audit(Audit(root, out, **{"checks": ("quality",), "workers": 0, **options}))


def findings(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "findings.jsonl").read_text(encoding="utf-8").splitlines()]


def problems(out: Path) -> dict[str, set[str]]:
    told: dict[str, set[str]] = {}
    for finding in findings(out):
        told.setdefault(finding["path"], set()).add(finding["problem"])
    return told


def checksums(root: Path) -> dict[str, str]:
    """Content, time and kind of everything in a tree."""
    return {
        str(path.relative_to(root)): f"{path.lstat().st_mtime_ns} "
        + (hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder")
        for path in sorted(root.rglob("*"))
    }


def test_what_is_found(collection: Path, tmp_path: Path) -> None:
    before = checksums(collection)
    summary = run(collection, tmp_path / "out")
    assert problems(tmp_path / "out") == {
        "bad/called.png": {"wrong_extension"},
        "bad/cut.jpg": {"corrupt"},
        "bad/small.png": {"low_resolution"},
        "bad/soft.jpg": {"blurred"},
        "copies/one copy.png": {"duplicate"},
        "copies/other small.jpg": {"low_resolution", "near_duplicate"},
        "foreign/empty.png": {"wrong_extension", "non_image_file"},
        "foreign/notes.txt": {"non_image_file"},
        "foreign/page.jpg": {"wrong_extension", "non_image_file"},
        "packed/pictures.zip": {"archive"},
        "copies/": {"nothing_usable"},
        "foreign/": {"nothing_usable"},
        "packed/": {"nothing_usable"},
        "nothing/": {"nothing_usable"},
        "nothing/below/": {"empty_folder"},
    }
    assert (summary["files"], summary["fit"]) == (13, 4)
    assert summary["problems"]["non_image_file"] == 3
    assert summary["not_run"].get("quality") is None
    assert checksums(collection) == before


def test_the_table_says_what_the_lines_say(collection: Path, tmp_path: Path) -> None:
    run(collection, tmp_path / "out")
    with open(tmp_path / "out" / "findings.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["path"], row["problem"], row["what"]) for row in rows] == [
        (line["path"], line["problem"], line["what"]) for line in findings(tmp_path / "out")
    ]


def test_a_second_pass_looks_at_what_has_changed(collection: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert run(collection, out)["pass"]["looked_at"] == 13
    first = findings(out)
    assert run(collection, out)["pass"]["looked_at"] == 0
    assert findings(out) == first
    (collection / "good" / "one.png").unlink()
    (collection / "good" / "new.png").write_bytes(encoded(scene(9, (100, 100))))
    (collection / "bad" / "small.png").write_bytes(encoded(scene(10)))
    assert run(collection, out)["pass"]["looked_at"] == 2
    told = problems(out)
    assert told["good/new.png"] == {"low_resolution"}
    assert "bad/small.png" not in told
    assert "copies/one copy.png" not in told  # what it was a copy of is gone


def test_other_limits_are_another_look(
    collection: Path, tmp_path: Path, limits_file: Callable[[str], Path]
) -> None:
    out = tmp_path / "out"
    run(collection, out)
    changes = limits_file("quality: {least_pixels: 1}\n")
    assert run(collection, out, changes=changes)["pass"]["looked_at"] == 13
    assert "bad/small.png" not in problems(out)


def test_processes_find_the_same(collection: Path, tmp_path: Path) -> None:
    run(collection, tmp_path / "one")
    run(collection, tmp_path / "two", workers=2)
    assert findings(tmp_path / "one") == findings(tmp_path / "two")


@pytest.mark.parametrize("after", [1, 4])
def test_a_broken_off_pass_goes_on(
    collection: Path,
    tmp_path: Path,
    after: int,
    monkeypatch: pytest.MonkeyPatch,
    limits_file: Callable[[str], Path],
) -> None:
    one_at_a_time = limits_file("run: {chunk: 1}\n")
    run(collection, tmp_path / "whole")
    count = 0

    def stumbling(plan: Plan, file: File) -> Seen:
        nonlocal count
        count += 1
        if count > after:
            raise KeyboardInterrupt
        return look(plan, file)

    monkeypatch.setattr(pipeline, "look", stumbling)
    with pytest.raises(KeyboardInterrupt):
        run(collection, tmp_path / "out", changes=one_at_a_time)
    monkeypatch.setattr(pipeline, "look", look)
    assert run(collection, tmp_path / "out", changes=one_at_a_time)["pass"]["looked_at"] == 13 - after
    assert findings(tmp_path / "out") == findings(tmp_path / "whole")


SCRIPT = """
import sys
from pathlib import Path
from anban.audit.run import Audit, audit
if __name__ == "__main__":
    root, out, changes, workers = sys.argv[1:]
    audit(Audit(Path(root), Path(out), checks=("quality",), workers=int(workers), changes=Path(changes)))
"""


@pytest.mark.parametrize(
    ("files", "kills", "workers"), [(60, 2, 0), pytest.param(600, 10, 2, marks=pytest.mark.slow)]
)
def test_a_killed_pass_goes_on(
    files: int, kills: int, workers: int, tmp_path: Path, limits_file: Callable[[str], Path]
) -> None:
    root, out = tmp_path / "many", tmp_path / "out"
    root.mkdir()
    for number in range(files):
        (root / f"{number:04}.png").write_bytes(encoded(scene(number % (files - 10), (120, 90))))
    before = checksums(root)
    run(root, tmp_path / "whole")
    small = limits_file("run: {chunk: 2}\n")
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    command = [sys.executable, str(script), str(root), str(out), str(small), str(workers)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    draw = random.Random(0)
    for _ in range(kills):
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL, env=environment)
        while process.poll() is None and not (out / "audit.sqlite").exists():
            time.sleep(0.01)
        time.sleep(draw.uniform(0, 0.5 if workers == 0 else 3))
        process.send_signal(signal.SIGKILL)
        process.wait()
    run(root, out, changes=small)
    assert findings(out) == findings(tmp_path / "whole")
    assert checksums(root) == before


def dies(plan: Plan, file: File) -> Seen:
    if file.path.endswith(b"one.png"):
        os._exit(1)
    return look(plan, file)


def test_a_file_that_kills_its_process_fails_alone(
    collection: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import get_context

    def pool(plan: Plan, workers: int, memory: int) -> ProcessPoolExecutor:
        return ProcessPoolExecutor(
            workers, get_context("fork"), initializer=launchers._begin, initargs=(plan, memory)
        )

    monkeypatch.setattr(launchers, "_pool", pool)
    monkeypatch.setattr(pipeline, "look", dies)
    run(collection, tmp_path / "out", workers=1)
    told = problems(tmp_path / "out")
    assert told["good/one.png"] == {"check_failed"}
    assert told["bad/soft.jpg"] == {"blurred"}


def test_a_check_that_breaks_off_is_told(
    collection: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from anban.audit.checks import quality

    def broken(picture: object, limits: object) -> list[Finding]:
        raise ZeroDivisionError("nothing to divide by")

    monkeypatch.setattr(quality, "check", broken)
    summary = run(collection, tmp_path / "out")
    assert summary["problems"]["check_failed"] == 8  # every picture that could be decoded
    assert "nothing to divide by" in findings(tmp_path / "out")[1]["what"]


def test_leaks_between_splits(tmp_path: Path) -> None:
    root = tmp_path / "set"
    shared, mask = scene(1), encoded(scene(2).convert("1"))
    for name, content in {
        "train/A/1.png": encoded(shared),
        "train/A/2.png": encoded(scene(3)),
        "test/A/1.jpg": encoded(shared, "JPEG", quality=80),
        "test/A/7.png": encoded(scene(4)),
        "val/A/2.png": encoded(scene(3)),
        "train/label/1.png": mask,
        "test/label/1.png": mask,
    }.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    run(root, tmp_path / "out")
    told = problems(tmp_path / "out")
    assert told["train/A/1.png"] == {"near_duplicate", "split_leak"}
    assert told["train/A/2.png"] == {"duplicate", "split_leak"}
    assert "train/label/1.png" not in told  # label maps may be the same
    assert "test/A/1.jpg" not in told  # the test set stays as it is
    leak = next(each for each in findings(tmp_path / "out") if each["problem"] == "split_leak")
    assert leak["data"] == {"of": "test/A/1.jpg", "splits": ["train", "test"]}


def test_links_and_pipes_are_not_followed(tmp_path: Path) -> None:
    root = tmp_path / "tree"
    (root / "inner").mkdir(parents=True)
    (root / "inner" / "loop").symlink_to(root)
    (root / "out.png").symlink_to("/etc/passwd")
    os.mkfifo(root / "pipe.png")
    (root / "real.txt").write_text("x")
    met = list(walk(os.fsencode(root)))
    assert [each.path for each in met] == [b"inner", b"real.txt", b""]
    assert [each.entries for each in met if isinstance(each, Folder)] == [1, 4]


def test_a_name_that_is_no_utf8_is_told(tmp_path: Path) -> None:
    root = tmp_path / "tree"
    root.mkdir()
    with open(os.fsencode(root) + b"/\xb0\xa1.txt", "wb") as file:
        file.write(b"text")
    run(root, tmp_path / "out")
    assert findings(tmp_path / "out")[0]["path"] == "\\udcb0\\udca1.txt"


def test_bad_input_is_refused(collection: Path, tmp_path: Path, limits_file: Callable[[str], Path]) -> None:
    with pytest.raises(InputError, match="no such folder"):
        run(tmp_path / "missing", tmp_path / "out")
    with pytest.raises(InputError, match="in the audited tree"):
        run(collection, collection / "out")
    with pytest.raises(InputError, match="Unknown check 'qualty'"):
        run(collection, tmp_path / "out", checks=("qualty",))
    with pytest.raises(InputError, match=r"Unknown key 'quality\.edge_widht'"):
        run(collection, tmp_path / "out", changes=limits_file("quality: {edge_widht: 2}\n"))
    with pytest.raises(InputError, match="Unknown section 'qualty'"):
        run(collection, tmp_path / "out", changes=limits_file("qualty: {}\n"))
    with pytest.raises(InputError, match="Unknown problem"):
        run(collection, tmp_path / "out", changes=limits_file("clean: {unfit: [blurry]}\n"))
    run(collection, tmp_path / "out")
    other = tmp_path / "other"
    other.mkdir()
    with pytest.raises(InputError, match="holds the audit of"):
        run(other, tmp_path / "out")


def test_two_audits_do_not_write_at_once(collection: Path, tmp_path: Path) -> None:
    from filelock import FileLock

    (tmp_path / "out").mkdir()
    with FileLock(tmp_path / "out" / ".lock"), pytest.raises(InputError, match="Another audit"):
        run(collection, tmp_path / "out")
