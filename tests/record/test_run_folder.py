"""The run folder: it survives kills, torn lines and rivals, and says plainly what is wrong."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from loguru import logger

from anban.errors import InputError
from anban.record import Ledger, RunFolder, find_runs, readable
from anban.record import run as run_module

INFO: dict[str, object] = {
    "title": "TinyCD",
    "task": "change",
    "hash": "0123456789ab",
    "commit": None,
    "environment": {},
}


def create(out: Path, recipe: str = "change/tiny", seed: int = 0, **info: object) -> RunFolder:
    return RunFolder.create(out, recipe, seed=seed, info={**INFO, **info})


def in_a_process(code: str, *arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)], stdout=subprocess.PIPE, text=True, cwd=Path.cwd()
    )


def test_a_start_leaves_folder_record_and_row(tmp_path: Path) -> None:
    run = create(tmp_path, seed=7)
    stored = json.loads((run.path / "run.json").read_text())
    assert run.path.parent == tmp_path / "change" / "tiny"
    assert re.fullmatch(r"\d{8}-\d{6}-s7-[0-9a-f]{4}", run.id)
    assert run.path.name == run.id
    assert stored == run.info
    assert stored["format"] == "anban-run/1"
    assert stored["state"] == "running"
    assert stored["pid"] == os.getpid()
    assert [(row["id"], row["state"], row["seed"]) for row in Ledger(tmp_path).rows()] == [
        (run.id, "running", 7)
    ]


def test_the_environment_variables_are_not_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_TOKEN", "hunter2-secret")
    run = RunFolder.create(tmp_path, "change/tiny", seed=0, info={})
    run.finish("finished")
    assert run.info["environment"]["python"]
    assert all(b"hunter2-secret" not in file.read_bytes() for file in tmp_path.rglob("*") if file.is_file())


def test_two_starts_in_the_same_second_get_two_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digits = iter(["aaaa", "aaaa", "bbbb"])
    started = datetime(2026, 11, 20, tzinfo=UTC)
    monkeypatch.setattr("secrets.token_hex", lambda size: next(digits))
    paths = [run_module._new_folder(tmp_path, started, 0) for _ in range(2)]
    assert [path.name[-4:] for path in paths] == ["aaaa", "bbbb"]


@pytest.mark.parametrize(
    "recipe",
    [
        "",
        "../up",
        "change/../../x",
        "/abs",
        "a//b",
        "a/.hidden",
        "a b",
        "a/b\n",
        "C:\\x",
        "_a",
        "变\u3000化",
        "变/",
    ],
)
def test_a_recipe_id_cannot_leave_the_out_folder(tmp_path: Path, recipe: str) -> None:
    with pytest.raises(InputError, match="cannot name a folder"):
        create(tmp_path / "out", recipe)
    assert not (tmp_path / "out").exists()


def test_info_may_not_contradict_the_record(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="state"):
        create(tmp_path, state="finished")
    assert create(tmp_path, recipe="change/tiny", seed=0).info["seed"] == 0


def test_an_out_that_cannot_be_written_is_the_users_matter(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file")
    with pytest.raises(InputError, match="No run folder can be made"):
        create(tmp_path / "out")


def test_update_and_finish_reach_file_and_ledger(tmp_path: Path) -> None:
    run = create(tmp_path)
    score = {
        "split": "test",
        "protocol": "whole",
        "checkpoint": "best",
        "name": "f1",
        "value": np.float32(0.5),
    }
    run.update(scores=[score, {**score, "name": "iou", "value": float("nan")}], data={"fingerprint": "abc"})
    run.finish("failed", why="loss is NaN at step 3")
    again = RunFolder.open(run.path)
    assert (again.state, again.info["why"]) == ("failed", "loss is NaN at step 3")
    assert [s["value"] for s in again.info["scores"]] == [0.5, None]
    assert again.info["seconds"] >= 0
    assert again.info["ended"] >= again.info["started"]
    (row,) = Ledger(tmp_path).rows(score=("test", "whole", "best", "f1"))
    assert (row["state"], row["fingerprint"], row["score"]) == ("failed", "abc", 0.5)
    with pytest.raises(ValueError, match="not 'done'"):
        run.finish("done")


def test_an_update_keeps_what_another_process_added(tmp_path: Path) -> None:
    run = create(tmp_path)
    RunFolder.open(run.path).update(efficiency={"macs": 5})
    run.update(device="cpu")
    assert RunFolder.open(run.path).info["efficiency"] == {"macs": 5}


def test_adding_to_a_finished_run_does_not_change_its_time(tmp_path: Path) -> None:
    run = create(tmp_path)
    run.finish("finished")
    seconds = run.info["seconds"]
    later = RunFolder.open(run.path)
    later._since -= 1000
    later.update(protocols={})
    assert later.info["seconds"] == seconds


def test_an_interrupted_rewrite_leaves_the_old_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = create(tmp_path)
    before = (run.path / "run.json").read_bytes()

    def fail(*_: object) -> None:
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", fail)
        with pytest.raises(OSError, match="no space"):
            run.update(device="cuda")
    assert (run.path / "run.json").read_bytes() == before
    assert not list(run.path.glob(".*.tmp"))


def test_readers_never_see_half_a_record(tmp_path: Path) -> None:
    run = create(tmp_path)
    code = """
import sys
from anban.record.files import to_json, write_atomically
from pathlib import Path
path = Path(sys.argv[1])
for n in range(100):
    write_atomically(path, to_json({"n": n, "text": "x" * (1000 * (n % 7))}))
"""
    seen = 0
    with in_a_process(code, run.path / "other.json") as writer:
        while writer.poll() is None:
            if (run.path / "other.json").exists():
                json.loads((run.path / "other.json").read_text())
                seen += 1
    assert writer.returncode == 0
    assert seen > 0


def test_a_killed_run_is_in_the_ledger_and_shown_as_lost(tmp_path: Path) -> None:
    code = """
import sys, time
from anban.record import RunFolder
run = RunFolder.create(sys.argv[1], "change/tiny", seed=1, info={"commit": None, "environment": {}})
run.log_metrics(1, 0.1, "train", None, {"loss": 0.5})
print(run.path, flush=True)
time.sleep(60)
"""
    with in_a_process(code, tmp_path) as process:
        assert process.stdout is not None
        path = Path(process.stdout.readline().strip())
        assert RunFolder.open(path).state == "running"
        process.send_signal(signal.SIGKILL)
        # Dead but not yet waited for, it still has its pid, and counts as gone all the same.
        for _ in range(1000):
            if RunFolder.open(path).state == "lost":
                break
            time.sleep(0.01)
        assert RunFolder.open(path).state == "lost"
    run = RunFolder.open(path)
    assert (run.state, run.info["state"]) == ("lost", "running")
    assert [row["state"] for row in Ledger(tmp_path).rows()] == ["lost"]
    assert len(Ledger(tmp_path).rows(state="lost")) == 1
    assert Ledger(tmp_path).rows(state="running") == []

    run.resume(device="cpu")
    again = RunFolder.open(path)
    assert (again.state, again.info["pid"], len(again.info["resumed"])) == ("running", os.getpid(), 1)
    assert Ledger(tmp_path).rows(state="lost") == []


def test_a_run_of_another_host_or_of_a_reused_pid(tmp_path: Path) -> None:
    run = create(tmp_path)
    run.update(process="another boot:1")
    assert run.state == "lost"
    run.update(host="elsewhere")
    assert run.state == "running"


def test_the_time_goes_on_after_a_resume(tmp_path: Path) -> None:
    run = create(tmp_path)
    run._since -= 100
    run.log_metrics(5, 1.0, "val", "whole", {"f1": 0.1})
    again = RunFolder.open(run.path)  # as after a kill: run.json knows nothing of the 100 seconds
    again.resume()
    assert 100 <= again.elapsed < 200
    assert 100 <= again.info["seconds"] < 200


def test_metrics_come_back_and_undefined_is_null(tmp_path: Path) -> None:
    run = create(tmp_path)
    run.log_metrics(
        3, 0.5, "val", "whole", {"f1": np.float64(0.25), "iou": float("nan"), "loss": float("inf"), "x": None}
    )
    text = (run.path / "metrics.jsonl").read_text()
    assert "NaN" not in text
    assert "Infinity" not in text
    assert {line["name"]: line["value"] for line in run.metrics()} == {
        "f1": 0.25,
        "iou": None,
        "loss": None,
        "x": None,
    }
    assert set(run.metrics()[0]) == {"step", "epoch", "split", "protocol", "name", "value", "time"}


def test_a_batch_of_metrics_is_one_write(tmp_path: Path) -> None:
    # Lines of two processes stay whole and batches stay together only if each batch is one write.
    run = create(tmp_path)
    code = """
import sys
from anban.record import RunFolder
run = RunFolder.open(sys.argv[1])
for step in range(500):
    run.log_metrics(step, 0.0, sys.argv[2], None, dict.fromkeys("abc", 1.0))
"""
    with in_a_process(code, run.path, "train") as first, in_a_process(code, run.path, "val") as second:
        pass
    assert first.returncode == second.returncode == 0
    lines = run.metrics()
    assert len(lines) == 2 * 500 * 3
    batches = [lines[index : index + 3] for index in range(0, len(lines), 3)]
    assert all([line["name"] for line in batch] == ["a", "b", "c"] for batch in batches)
    assert all(len({(line["split"], line["step"]) for line in batch}) == 1 for batch in batches)


def test_repeated_lines_after_a_resume_the_last_counts(tmp_path: Path) -> None:
    run = create(tmp_path)
    for value in (1.0, 2.0):
        run.log_metrics(1, 0.1, "train", None, {"loss": value})
    run.log_metrics(1, 0.1, "val", "whole", {"loss": 3.0})
    assert [line["value"] for line in run.metrics()] == [2.0, 3.0]
    assert [line["value"] for line in run.metrics(dedupe=False)] == [1.0, 2.0, 3.0]


def test_a_torn_last_line_is_passed_over_also_once_the_run_goes_on(tmp_path: Path) -> None:
    run = create(tmp_path)
    run.log_metrics(1, 0.1, "train", None, {"loss": 1.0})
    with open(run.path / "metrics.jsonl", "a") as file:
        file.write('{"step": 2, "epoch": 0.2, "spl')
    assert [line["step"] for line in run.metrics()] == [1]
    RunFolder.open(run.path).log_metrics(2, 0.2, "train", None, {"loss": 2.0})
    assert [line["step"] for line in run.metrics()] == [1, 2]


def test_a_torn_only_line(tmp_path: Path) -> None:
    run = create(tmp_path)
    assert run.metrics() == []
    (run.path / "metrics.jsonl").write_text('{"step"')
    assert run.metrics() == []
    run.log_metrics(1, 0.1, "train", None, {"loss": 1.0})
    assert [line["step"] for line in run.metrics()] == [1]


def test_samples_of_one_evaluation_replace_each_other(tmp_path: Path) -> None:
    run = create(tmp_path)
    line = {
        "split": "test",
        "protocol": "whole",
        "checkpoint": "best",
        "name": "a.png",
        "counts": {"tn": 1},
        "scores": {"f1": None},
    }
    run.log_samples([line, {**line, "name": "b.png"}])
    run.log_samples([{**line, "protocol": "tiled"}])
    run.log_samples([{**line, "scores": {"f1": float("nan")}}])
    assert [(s["protocol"], s["name"]) for s in run.samples()] == [("tiled", "a.png"), ("whole", "a.png")]
    assert run.samples(split="test", protocol="whole") == [line]
    assert run.samples(split="val") == []
    run.log_samples([{**line, "checkpoint": "last"}])
    assert [s["checkpoint"] for s in run.samples("test", "whole")] == ["best", "last"]
    assert run.samples("test", "whole", "best") == [line]


def test_a_stamp_belongs_to_its_split_and_the_best_checkpoint_counts(tmp_path: Path) -> None:
    run = create(tmp_path, protocols={"test/whole": {"size": "8x8"}, "val/whole": {"size": "4x4"}})
    assert [run.stamp(split, "whole") for split in ("test", "val", "train")] == [
        {"size": "8x8"}, {"size": "4x4"}, None
    ]  # fmt: skip
    place = {"split": "test", "protocol": "whole", "name": "f1", "value": 1.0}
    for seen, counts in ((["last"], "last"), (["step-5", "last"], "last"), (["best", "last"], "best")):
        run.update(scores=[{**place, "checkpoint": name} for name in seen])
        assert run.scored_checkpoint("test", "whole") == counts
    assert run.scored_checkpoint("val", "whole") is None


@pytest.mark.parametrize("recipe", ["local/变化检测", "local/été_2+b", "local/3d"])
def test_a_recipe_may_be_named_in_any_script(tmp_path: Path, recipe: str) -> None:
    run = create(tmp_path, recipe)
    assert run.path.parent == tmp_path / recipe
    assert Ledger(tmp_path).find(run.id) == run.path


@pytest.mark.parametrize("state", ["failed", "interrupted"])
def test_a_full_disk_does_not_hide_why_a_run_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state: str
) -> None:
    run = create(tmp_path)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(run_module, "write_atomically", full)
    messages: list[str] = []
    sink = logger.add(messages.append, level="WARNING", format="{message}")
    run.finish(state, why="loss is NaN")
    logger.remove(sink)
    assert (run.info["state"], run.info["why"]) == (state, "loss is NaN")
    assert len(messages) == 1
    assert "No space left" in messages[0]
    with pytest.raises(OSError, match="No space"):
        run.finish("finished")


@pytest.mark.parametrize(
    "damage",
    ['{"id": ', '{"format": "anban-run/1", "id": "x", "recipe": "r", "state": "failed", "seconds": "a"}'],
)
def test_one_damaged_record_does_not_block_the_others(tmp_path: Path, damage: str) -> None:
    runs = [create(tmp_path, seed=seed) for seed in range(3)]
    (runs[1].path / "run.json").write_text(damage)
    messages: list[str] = []
    sink = logger.add(messages.append, level="WARNING", format="{message}")
    assert {run.id for run in readable(find_runs(tmp_path))} == {runs[0].id, runs[2].id}
    logger.remove(sink)
    assert len(messages) == 1
    assert str(runs[1].path / "run.json") in messages[0]
    with pytest.raises(InputError, match="no run folder"):
        list(readable([tmp_path]))


def test_the_second_user_of_a_folder_is_told_who_holds_it(tmp_path: Path) -> None:
    run = create(tmp_path)
    with run.lock():
        with pytest.raises(InputError) as refused, RunFolder.open(run.path).lock():
            pass
        message = str(refused.value)
        assert str(run.path) in message
        assert f"pid {os.getpid()} on {run.info['host']}" in message
    with RunFolder.open(run.path).lock():
        pass


def test_a_kill_frees_the_lock(tmp_path: Path) -> None:
    run = create(tmp_path)
    code = """
import sys, time
from anban.record import RunFolder
with RunFolder.open(sys.argv[1]).lock():
    print("held", flush=True)
    time.sleep(60)
"""
    with in_a_process(code, run.path) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        with pytest.raises(InputError, match=f"pid {process.pid} "), run.lock():
            pass
        process.kill()
    with run.lock():
        held = json.loads((run.path / "run.lock.json").read_text())
    assert held["pid"] == os.getpid()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no run.json"),
        ("", "cannot be read"),
        ("{", "cannot be read"),
        ("[]", "cannot be read"),
        ('{"id": 3, "recipe": "a", "state": "running"}', "no text under id"),
        ('{"format": "other/2", "id": "i", "recipe": "a", "state": "running"}', "other/2"),
    ],
)
def test_what_is_no_run_folder_is_refused_by_name(tmp_path: Path, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / "run.json").write_text(content)
    with pytest.raises(InputError, match=message) as refused:
        RunFolder.open(tmp_path)
    assert str(tmp_path) in str(refused.value)


def test_runs_are_found_without_entering_them(tmp_path: Path) -> None:
    runs = [create(tmp_path, recipe) for recipe in ("change/tiny", "change/tiny", "seg/deep/er")]
    inside = runs[0].checkpoints / "x"
    inside.mkdir(parents=True)
    (inside / "run.json").write_text("{}")
    assert find_runs(tmp_path) == sorted(run.path for run in runs)
    assert find_runs(tmp_path / "missing") == []


def test_a_copied_folder_can_be_read_and_has_no_ledger(tmp_path: Path) -> None:
    run = create(tmp_path / "out")
    away = tmp_path / "elsewhere"
    run.path.rename(away)
    copy = RunFolder.open(away / "run.json")
    copy.finish("interrupted")
    assert copy.out is None
    assert RunFolder.open(away).state == "interrupted"
    assert not (tmp_path / "ledger.sqlite").exists()


def test_a_file_name_that_is_not_text_can_be_recorded(tmp_path: Path) -> None:
    run = create(tmp_path, command="anban run data=caf\udce9")
    assert RunFolder.open(run.path).info["command"] == "anban run data=caf\\udce9"
    assert Ledger(tmp_path).rows()[0]["command"] == "anban run data=caf\\udce9"


def test_a_value_without_an_honest_form_is_refused(tmp_path: Path) -> None:
    run = create(tmp_path)
    with pytest.raises(TypeError, match="object"):
        run.update(device=object())
    assert RunFolder.open(run.path).info["device"] is None


def test_reading_records_needs_no_torch() -> None:
    code = "import sys, anban.record, anban.cli.runs; print(sorted({'torch', 'rich', 'omegaconf'} & set(sys.modules)))"
    with in_a_process(code) as process:
        assert process.stdout is not None
        assert process.stdout.read() == "[]\n"
