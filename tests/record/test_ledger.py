"""The ledger: nothing lost under eight writers, the same content from the folders, no damage that stops a run."""

from __future__ import annotations

import json
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from loguru import logger

from anban.errors import InputError
from anban.record import Ledger, RunFolder
from anban.record import ledger as ledger_module

INFO = {"task": "change", "hash": "0123456789ab", "commit": None, "environment": {"python": "3"}}
SCORES = [
    {"split": "test", "protocol": "whole", "checkpoint": "best", "name": name, "value": value}
    for name, value in (("f1", 0.8), ("iou", None))
]


@pytest.fixture
def warnings() -> Iterator[list[str]]:
    """What the log says from level warning up."""
    messages: list[str] = []
    sink = logger.add(lambda message: messages.append(str(message)), level="WARNING", format="{message}")
    yield messages
    logger.remove(sink)


def create(out: Path, recipe: str = "change/tiny", seed: int = 0, **info: object) -> RunFolder:
    return RunFolder.create(out, recipe, seed=seed, info={**INFO, **info})


def content(out: Path) -> list[str]:
    connection = sqlite3.connect(out / "ledger.sqlite")
    try:
        version = connection.execute("PRAGMA user_version").fetchone()
        return [str(version), *connection.iterdump()]
    finally:
        connection.close()


def ids(rows: list[dict[str, object]]) -> list[object]:
    return [row["id"] for row in rows]


def test_eight_processes_write_at_once_and_nothing_is_lost(tmp_path: Path) -> None:
    # Started together on a folder that does not exist: making the file is part of the race.
    code = """
import sys, time
from anban.record import RunFolder
number, go = int(sys.argv[2]), float(sys.argv[3])
time.sleep(max(0.0, go - time.time()))
for turn in range(50):
    run = RunFolder.create(sys.argv[1], "change/tiny", seed=number, info={"commit": None, "environment": {}})
    if turn % 10 == 0:
        run.finish("finished")
"""
    out, go = tmp_path / "out", datetime.now(UTC).timestamp() + 1.0
    arguments = [[sys.executable, "-c", code, str(out), str(n), str(go)] for n in range(8)]
    writers = [subprocess.Popen(each, stderr=subprocess.PIPE, text=True) for each in arguments]
    complaints = [writer.communicate()[1] for writer in writers]
    assert [writer.returncode for writer in writers] == [0] * 8, complaints
    assert complaints == [""] * 8
    rows = Ledger(out).rows()
    assert len(rows) == 400
    assert len({row["path"] for row in rows}) == 400
    assert {seed: sum(row["seed"] == seed for row in rows) for seed in range(8)} == dict.fromkeys(
        range(8), 50
    )
    assert sum(row["state"] == "finished" for row in rows) == 40
    before = content(out)
    assert Ledger(out).rebuild() == 400
    assert content(out) == before


def test_a_deleted_ledger_comes_back_the_same(tmp_path: Path) -> None:
    for seed in range(3):
        run = create(tmp_path, seed=seed, difference={"model.width": 2 + seed})
        run.update(scores=SCORES, data={"fingerprint": "abc"}, model={"name": "change/tiny"})
        if seed:
            run.finish("failed" if seed == 1 else "finished", why="no memory" if seed == 1 else None)
    before = content(tmp_path)
    assert sum("INSERT" in line for line in before) == 3 + 6
    (tmp_path / "ledger.sqlite").unlink()
    assert len(Ledger(tmp_path).rows()) == 3
    assert content(tmp_path) == before
    Ledger(tmp_path).rebuild()
    assert content(tmp_path) == before


def test_a_run_that_goes_on_brings_back_the_others_too(tmp_path: Path) -> None:
    create(tmp_path)
    run = create(tmp_path)
    before = content(tmp_path)
    (tmp_path / "ledger.sqlite").unlink()
    run._store()
    assert content(tmp_path) == before


def test_rebuild_drops_rows_of_deleted_folders_and_enters_new_ones(tmp_path: Path) -> None:
    gone, stays = create(tmp_path), create(tmp_path, "seg/net")
    gone.update(scores=SCORES)
    shutil.rmtree(gone.path)
    copied = tmp_path / "from-elsewhere"
    shutil.copytree(stays.path, copied)
    info = json.loads((copied / "run.json").read_text())
    (copied / "run.json").write_text(json.dumps({**info, "id": "copied"}))
    assert Ledger(tmp_path).rebuild() == 2
    assert {row["id"]: row["path"] for row in Ledger(tmp_path).rows()} == {
        stays.id: f"seg/net/{stays.id}",
        "copied": "from-elsewhere",
    }
    assert Ledger(tmp_path).scores(gone.id) == []


def test_of_two_folders_with_one_id_the_one_at_home_counts(tmp_path: Path, warnings: list[str]) -> None:
    run = create(tmp_path)
    for name in ("a-copy", "z-copy"):
        shutil.copytree(run.path, tmp_path / name)
    assert Ledger(tmp_path).rebuild() == 1
    assert Ledger(tmp_path).rows()[0]["path"] == f"change/tiny/{run.id}"
    assert any("z-copy" in message for message in warnings)


def test_an_unreadable_record_is_left_out_with_its_name(tmp_path: Path, warnings: list[str]) -> None:
    run, bad = create(tmp_path), create(tmp_path)
    (bad.path / "run.json").write_text('{"id": ')
    assert Ledger(tmp_path).rebuild() == 1
    assert ids(Ledger(tmp_path).rows()) == [run.id]
    assert any(str(bad.path / "run.json") in message for message in warnings)


def test_odd_values_in_a_record_do_not_stop_the_ledger(tmp_path: Path) -> None:
    run = create(tmp_path, title={"a": 1}, data=["x"], model=None, hash=5, seed=2**80)
    run.update(scores=[*SCORES, "odd", {"split": None, "value": [1]}])
    assert Ledger(tmp_path).rebuild() == 1
    assert len(Ledger(tmp_path).scores(run.id)) == 3


@pytest.mark.parametrize("damage", ["text", "header", "pages"])
def test_a_damaged_file_is_set_aside_and_rebuilt(tmp_path: Path, warnings: list[str], damage: str) -> None:
    first = create(tmp_path)
    file = tmp_path / "ledger.sqlite"
    good = file.read_bytes()
    bad = {
        "text": b"this is no database, only a file of that name" * 100,
        "header": b"\0" * 100 + good[100:],
        "pages": good[:100] + b"\xff" * (len(good) - 100),
    }[damage]
    file.write_bytes(bad)
    second = create(tmp_path)
    assert set(ids(Ledger(tmp_path).rows())) == {first.id, second.id}
    (aside,) = tmp_path.glob("ledger.sqlite.broken-*")
    assert aside.read_bytes() == bad
    assert any("damaged" in message for message in warnings)


def test_another_version_is_filled_anew(tmp_path: Path) -> None:
    run = create(tmp_path)
    connection = sqlite3.connect(tmp_path / "ledger.sqlite")
    connection.executescript("DROP TABLE runs; CREATE TABLE runs (old TEXT); PRAGMA user_version = 999;")
    connection.close()
    assert ids(Ledger(tmp_path).rows()) == [run.id]
    assert content(tmp_path)[0] == f"({ledger_module.SCHEMA},)"


def test_a_ledger_that_cannot_be_written_never_stops_a_run(tmp_path: Path, warnings: list[str]) -> None:
    (tmp_path / "ledger.sqlite").mkdir()
    run = create(tmp_path)
    run.finish("finished")
    assert any(run.id in message and "rebuild" in message for message in warnings)
    # Reading goes to the folders, which have it all.
    assert [(row["id"], row["state"]) for row in Ledger(tmp_path).rows()] == [(run.id, "finished")]
    assert Ledger(tmp_path).find(run.id) == run.path
    (tmp_path / "ledger.sqlite").rmdir()
    assert Ledger(tmp_path).rebuild() == 1


def test_a_writer_waits_for_a_longer_one(tmp_path: Path) -> None:
    create(tmp_path)
    code = """
import sqlite3, sys, time
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("BEGIN IMMEDIATE")
print("held", flush=True)
time.sleep(0.5)
connection.execute("COMMIT")
"""
    command = [sys.executable, "-c", code, str(tmp_path / "ledger.sqlite")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        assert len(Ledger(tmp_path).rows()) == 1  # readers need not wait
        run = create(tmp_path)
    assert run.id in ids(Ledger(tmp_path).rows())


def test_readers_and_writers_side_by_side_where_the_disk_can(tmp_path: Path) -> None:
    create(tmp_path)
    connection = sqlite3.connect(tmp_path / "ledger.sqlite")
    assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    connection.close()


def test_a_network_file_system_keeps_the_plain_journal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger_module, "_file_system", lambda folder: "nfs4")
    run = create(tmp_path)
    connection = sqlite3.connect(tmp_path / "ledger.sqlite")
    assert connection.execute("PRAGMA journal_mode").fetchone() == ("delete",)
    connection.close()
    assert ids(Ledger(tmp_path).rows()) == [run.id]


def test_the_file_system_is_that_of_the_nearest_mount(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mounts = "a / ext4 rw 0 0\nb /data nfs rw 0 0\nc /data/fast\\040disk xfs rw 0 0\n"
    monkeypatch.setattr(Path, "read_text", lambda self, **_: mounts)
    kinds = [
        ledger_module._file_system(Path(place))
        for place in ("/home", "/data/runs", "/data/fast disk/x", "/database")
    ]
    assert kinds == ["ext4", "nfs", "xfs", "ext4"]


def test_filters(tmp_path: Path) -> None:
    old = create(tmp_path, "change/tiny", hash="aaaa", title="old")
    new = create(tmp_path, "change/other", hash="aabb")
    seg = create(tmp_path, "seg/net", task="seg", hash="cccc")
    seg.finish("failed", why="no memory")
    old.info["started"] = "2020-01-02T03:04:05.000+00:00"
    old._store()
    rows = Ledger(tmp_path).rows
    assert ids(rows())[-1] == old.id
    assert set(ids(rows())) == {old.id, new.id, seg.id}
    assert set(ids(rows(recipe="change/*"))) == {old.id, new.id}
    assert ids(rows(recipe="change/tiny")) == [old.id]
    assert ids(rows(state="failed")) == ids(rows(task="seg")) == [seg.id]
    assert set(ids(rows(hash="aa"))) == {old.id, new.id}
    assert ids(rows(hash="aab")) == [new.id]
    assert set(ids(rows(since=datetime.now(UTC) - timedelta(hours=1)))) == {new.id, seg.id}
    assert set(ids(rows(since="2020-01-02"))) == {old.id, new.id, seg.id}
    assert set(ids(rows(since=datetime(2020, 1, 2, 4)))) == {new.id, seg.id}
    assert len(rows(limit=2)) == 2
    assert rows(recipe="nothing") == []
    assert "score" not in rows()[0]
    assert rows(score=("test", "whole", "best", "f1"))[0]["score"] is None


def test_a_row_has_the_outcome_with_its_cause_and_remedy(tmp_path: Path) -> None:
    """Of the finding that is the outcome; runs of before there were outcomes have none."""
    gap = {
        "kind": "gap",
        "what": "w",
        "cause": "It fits too well.",
        "remedy": "Augment.",
        "step": 4,
        "ended": None,
    }
    ill = create(tmp_path, seed=1)
    ill.finish(
        "finished", outcome="gap", findings=[gap, {**gap, "kind": "collapse", "cause": "C.", "ended": 2}]
    )
    sound = create(tmp_path, seed=2)
    sound.finish("finished", outcome="healthy", findings=[])
    old = create(tmp_path, seed=3)
    for key in ("outcome", "findings"):
        del old.info[key]
    old._store()
    for _ in range(2):
        rows = {
            row["seed"]: [row[key] for key in ("outcome", "cause", "remedy")]
            for row in Ledger(tmp_path).rows()
        }
        assert rows == {
            1: ["gap", "It fits too well.", "Augment."],
            2: ["healthy", None, None],
            3: [None] * 3,
        }
        Ledger(tmp_path).rebuild()
    assert RunFolder.open(old.path).info.get("outcome") is None


def test_a_later_finished_run_of_the_same_experiment_and_seed_supersedes(tmp_path: Path) -> None:
    def run(day: int, state: str, **info: Any) -> RunFolder:
        made = create(tmp_path, **info)
        made.update(state=state, started=f"2026-01-0{day}T00:00:00.000+00:00")
        return made

    failed, lost = run(1, "failed"), run(2, "running")
    lost.update(process="another boot:1")
    planned, alive, finished = run(3, "planned"), run(4, "running"), run(5, "finished")
    best, newer = run(6, "finished"), run(7, "queued")
    other = run(1, "failed", seed=1)
    different = run(1, "interrupted", hash="ffff")
    rows = {row["id"]: (row["state"], row["superseded_by"]) for row in Ledger(tmp_path).rows()}
    for old in (failed, lost, planned):
        assert rows[old.id] == ("superseded", best.id)
    assert rows[alive.id][0] == "running"
    assert [rows[run.id] for run in (finished, best, newer, other, different)] == [
        ("finished", None),
        ("finished", None),
        ("queued", None),
        ("failed", None),
        ("interrupted", None),
    ]
    ledger = Ledger(tmp_path)
    assert set(ids(ledger.rows(state="superseded"))) == {failed.id, lost.id, planned.id}
    assert ids(ledger.rows(state="failed")) == [other.id]
    assert ids(ledger.rows(id=newer.id)) == ids(ledger.rows(state="queued")) == [newer.id]


def test_the_runs_of_one_experiment_are_found_by_hash_and_seed(tmp_path: Path) -> None:
    for number, (hash, seed) in enumerate((("aaaa", 0), ("aaaa", 1), ("aaaa", 1), ("bbbb", 1))):
        run = create(tmp_path, seed=seed, hash=hash)
        run.info["started"] = f"2026-01-0{number + 1}T00:00:00.000+00:00"
        run._store()
    ledger = Ledger(tmp_path)
    rows = ledger.rows(hash="aaaa", seed=1)
    assert [row["started"][:10] for row in rows] == ["2026-01-03", "2026-01-02"]
    assert [ledger.find(row["id"]) for row in rows] == [tmp_path / row["path"] for row in rows]
    assert len(ledger.rows(seed=1)) == 3
    query = "SELECT * FROM runs WHERE hash >= 'a' AND hash < 'b' AND seed = 1 ORDER BY started DESC, id DESC"
    found = ledger._do(lambda connection: connection.execute(f"EXPLAIN QUERY PLAN {query}").fetchall())
    assert any("runs_by_hash" in row[-1] for row in found)


def test_rows_and_scores_are_as_recorded(tmp_path: Path) -> None:
    run = create(tmp_path, difference={"optim.lr": 0.1})
    run.update(scores=SCORES)
    (row,) = Ledger(tmp_path).rows(score=("test", "whole", "best", "f1"))
    assert row["difference"] == {"optim.lr": 0.1}
    assert row["environment"] == {"python": "3"}
    assert (row["score"], row["path"]) == (0.8, f"change/tiny/{run.id}")
    assert Ledger(tmp_path).scores(run.id) == SCORES


def test_looking_makes_nothing(tmp_path: Path) -> None:
    out = tmp_path / "none"
    assert Ledger(out).rows() == []
    assert Ledger(out).scores("x") == []
    with pytest.raises(InputError, match="no run 'x'"):
        Ledger(out).find("x")
    with pytest.raises(InputError, match="no such folder"):
        Ledger(out).rebuild()
    assert not out.exists()


def test_a_run_is_found_by_id_beginning_or_path(tmp_path: Path) -> None:
    run, other = create(tmp_path, seed=1), create(tmp_path, seed=2)
    find = Ledger(tmp_path).find
    unique = run.id[: run.id.index("-s1") + 3]
    assert find(run.id) == find(unique) == find(run.path) == find(run.path / "run.json") == run.path
    assert find(f"change/tiny/{run.id}") == run.path
    with pytest.raises(InputError, match="2 runs begin with") as several:
        find("20")
    assert run.id in str(several.value)
    assert other.id in str(several.value)
    with pytest.raises(InputError, match="no run") as unknown:
        find(run.id[:-2] + "zz")
    assert run.id in str(unknown.value)
    with pytest.raises(InputError, match="no run 'change/tiny'") as recipe:
        find("change/tiny")
    assert other.id in str(recipe.value)
    shutil.rmtree(run.path)
    with pytest.raises(InputError, match="is gone"):
        find(run.id)


def test_ten_thousand_runs_are_read_once_and_listed(tmp_path: Path) -> None:
    # As many as a lab makes in years, put straight into the file; the folders' own speed is `make bench`'s matter.
    run = create(tmp_path)
    with sqlite3.connect(tmp_path / "ledger.sqlite") as connection:
        connection.execute(
            "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 9999)"
            " INSERT INTO runs (id, recipe, state, started) SELECT 'r' || i, 'change/' || (i % 10), 'finished',"
            " strftime('%Y-%m-%dT%H:%M:%S', i, 'unixepoch') FROM n"
        )
    connection.close()
    rows = Ledger(tmp_path).rows()
    assert len(rows) == 10_000
    assert rows[0]["id"] == run.id
    assert rows[1]["id"] == "r9999"
    assert len(Ledger(tmp_path).rows(recipe="change/3")) == 1000
    # The order comes from an index: no sorting of all rows for the newest few.
    connection = sqlite3.connect(tmp_path / "ledger.sqlite")
    plan = connection.execute(
        "EXPLAIN QUERY PLAN SELECT * FROM runs ORDER BY started DESC, id DESC"
    ).fetchall()
    connection.close()
    assert "TEMP B-TREE" not in str(plan)
