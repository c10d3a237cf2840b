"""The command as a user types it: standard output, standard error, exit status."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from anban.cli.check import check
from anban.recipe import list_recipes

RECIPE = "change/demo-fc-siam-diff"


def anban(*arguments: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "anban", *map(str, arguments)]
    root = str(Path(__file__).parents[2])
    environment = {**os.environ, "PYTHONPATH": root, "COLUMNS": "200"}
    return subprocess.run(
        command, capture_output=True, text=True, timeout=300, cwd=cwd, env=environment, check=False
    )


def refused(done: subprocess.CompletedProcess[str], *parts: str) -> None:
    assert done.returncode == 2, done.stderr
    message = [line for line in done.stderr.splitlines() if not line.startswith(tuple("0123456789"))]
    assert message[0].startswith("anban: ")
    assert "Traceback" not in done.stderr
    for part in parts:
        assert part in done.stderr, done.stderr


@pytest.fixture(scope="module")
def run(tiny: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("out")
    done = anban("run", RECIPE, *tiny, "--out", out, "--device", "cpu")
    assert done.returncode == 0, done.stderr
    return Path(done.stdout.strip())


def test_help_imports_nothing_heavy() -> None:
    code = "import sys; import anban.cli.main; print([m for m in ('torch', 'numpy', 'matplotlib', 'omegaconf') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    listed = anban("--help").stdout
    for verb in (
        "recipes",
        "show",
        "diff",
        "check",
        "run",
        "eval",
        "predict",
        "study",
        "report",
        "runs",
        "profile",
        "doctor",
        "env",
    ):
        assert f" {verb} " in listed


def test_recipes_show_diff() -> None:
    listed = json.loads(anban("recipes", "--json").stdout)
    assert {"id", "task", "base", "title", "note", "recorded"} <= set(listed[0])
    shown = json.loads(anban("show", RECIPE, "optimizer.lr=5e-4", "--json").stdout)
    assert shown["config"]["optimizer"]["lr"] == 5e-4
    assert shown["sources"]["optimizer.lr"] == "command line"
    found = json.loads(anban("diff", RECIPE, "change/demo-tinycd", "--json").stdout)
    assert found["model.name"] == {"a": "change/fc-siam-diff", "b": "change/tinycd"}
    assert all(key.startswith("model.") for key in found)


def test_show_prints_the_words_of_the_note() -> None:
    lines = anban("show", "change/run-103140").stdout.splitlines()
    assert lines[2] == "note      000_change_detection_lab_notes, lines 85-87"
    assert lines[3] == "original  2. 103140 跟10341版本一样，lr提升了10.7倍，再跑一次"
    assert lines[4].startswith("          1. F1 8968")
    assert "recorded  F1 89.68, inference_F1 90.33" in lines
    assert any(line.startswith("finding   All scores above") for line in lines)
    assert any(line.startswith("decision  ") for line in lines)
    assert max(map(len, lines[: lines.index("")])) <= 110
    assert "note      000_change_detection_lab_notes, lines 174, 190-192" in anban("show", "change/v1").stdout


def test_a_run_can_be_evaluated_predicted_and_diagnosed(run: Path, demo_data: Path, tmp_path: Path) -> None:
    rows = json.loads(
        anban("eval", run, "--protocol", "whole,tiles-32", "--protocol", "sliding-32-16", "--json").stdout
    )
    assert [row["protocol"]["name"] for row in rows] == ["whole", "tiles-32", "sliding-32-16"]
    assert all("f1" in row["scores"] for row in rows)
    done = anban("predict", run, demo_data / "test", "--out", tmp_path / "maps")
    assert done.returncode == 0, done.stderr
    masks = sorted(p.name for p in (tmp_path / "maps").iterdir())
    assert masks == [f"test_000{i}{kind}.png" for i in (0, 1) for kind in ("", "_probability")]
    assert set(np.unique(np.asarray(Image.open(tmp_path / "maps" / "test_0000.png")))) <= {0, 255}
    done = anban("doctor", run, "--json")
    assert json.loads(done.stdout)["state"] == "finished"
    done = anban("doctor", demo_data)
    assert done.returncode == 0, done.stdout
    listed = json.loads(anban("runs", "list", "--out", run.parents[2], "--json").stdout)
    assert [row["id"] for row in listed] == [run.name]


def test_check_and_profile_and_env() -> None:
    lines = json.loads(anban("check", "change/levir-tinycd", "change/levir-bit", "--json").stdout)
    assert [(line["id"], line["status"]) for line in lines] == [
        ("change/levir-tinycd", "ok"),
        ("change/levir-bit", "ok"),
    ]
    cost = json.loads(anban("profile", "change/tinycd", "--size", 64, "--device", "cpu", "--json").stdout)[0]
    assert cost["parameters"] == 285128
    assert cost["input"] == "2 x 1x3x64x64"
    assert cost["levels"]
    assert json.loads(anban("env", "--json").stdout)["device"] in ("cpu", "cuda")


def test_check_takes_all_recipes_of_a_task(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def pretend(name: str, folder: Path) -> dict[str, object]:
        return {"id": name, "status": "ok", "error": None}

    monkeypatch.setattr("anban.engine.debug.check_recipe", pretend)
    of_task = [line["id"] for line in list_recipes("change")]
    for every in (True, False):
        check(None, every=every, task="change", json=True)
        assert [line["id"] for line in json.loads(capsys.readouterr().out)] == of_task
    refused(anban("check"), "No recipe is given", "--task")
    refused(anban("check", RECIPE, "--all"), "as well")
    refused(anban("check", "--task", "chang"), "did you mean 'change'")


def test_bad_words_are_refused(tmp_path: Path) -> None:
    refused(anban("run", "change/demo-fc-siam-dif"), "did you mean 'change/demo-fc-siam-diff'")
    refused(anban("run", RECIPE, "optimiser.lr=1"), "'optimiser'", "did you mean 'optimizer'")
    refused(anban("run", RECIPE, "optimizer.lr=quick"), "optimizer.lr", "a finite number")
    refused(anban("run", RECIPE, "train.iterations=0"), "train.iterations", "at least 1")
    refused(anban("run", RECIPE, "--device", "tpu"), "cpu or cuda")
    refused(anban("run", RECIPE, "--resume", "--out", tmp_path), "no unfinished run")
    refused(anban("eval", tmp_path / "nothing.pt"), "no such checkpoint")
    refused(anban("eval", tmp_path), "no run folder")
    refused(anban("study", "change/dmo"), "did you mean 'change/demo'")
    refused(anban("show", "change/none"), "Unknown recipe")
    assert not list(tmp_path.rglob("run.json"))


@pytest.mark.parametrize(
    ("damage", "parts"),
    [
        ("partner", ("train_0001.png", "B")),
        ("size", ("train_0001.png", "64")),
        ("empty", ("val",)),
        ("truncated", ("train_0001.png",)),
        ("unreadable", ("train_0001.png",)),
        ("16-bit", ("train_0001.png", "16")),
        ("rgb", ("train_0001.png",)),
        ("coding", ("label",)),
        ("no change", ("train",)),
    ],
)
def test_bad_data_is_refused_and_the_row_stays(
    damage: str, parts: tuple[str, ...], tiny: list[str], demo_data: Path, tmp_path: Path
) -> None:
    import shutil

    data = tmp_path / "data"
    shutil.copytree(demo_data, data)
    (data / "demo.json").unlink()
    victim = data / "train" / "B" / "train_0001.png"
    label = data / "train" / "label" / "train_0001.png"
    if damage == "partner":
        victim.unlink()
    elif damage == "size":
        Image.open(victim).resize((32, 32)).save(victim)
    elif damage == "empty":
        for file in (data / "val").rglob("*.png"):
            file.unlink()
    elif damage == "truncated":
        victim.write_bytes(victim.read_bytes()[:900])
    elif damage == "unreadable":
        victim.write_bytes(b"not a picture")
    elif damage == "16-bit":
        Image.fromarray(np.zeros((64, 64), np.uint16)).save(label)
    elif damage == "rgb":
        Image.open(label).convert("RGB").save(label)
    elif damage == "coding":
        for file in (data / "train" / "label").iterdir():
            Image.fromarray((np.asarray(Image.open(file)) > 0).astype(np.uint8)).save(file)
    elif damage == "no change":
        for file in (data / "train" / "label").iterdir():
            Image.fromarray(np.zeros((64, 64), np.uint8)).save(file)
    done = anban("run", RECIPE, *tiny, f"data.root={data}", "--out", tmp_path / "runs", "--device", "cpu")
    refused(done, *parts)
    rows = json.loads(anban("runs", "list", "--out", tmp_path / "runs", "--json").stdout)
    assert [row["state"] for row in rows] == ["failed"]
    assert rows[0]["why"]


def test_ctrl_c_ends_with_130_and_the_run_can_go_on(tiny: list[str], tmp_path: Path) -> None:
    arguments = [
        "run",
        RECIPE,
        *tiny,
        "train.iterations=2000",
        "train.eval_every=1000",
        "--out",
        str(tmp_path),
        "--device",
        "cpu",
    ]
    command = [sys.executable, "-m", "anban", *arguments]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        limit = time.monotonic() + 120
        while time.monotonic() < limit and not any(
            f.stat().st_size for f in tmp_path.glob("change/*/*/metrics.jsonl")
        ):
            time.sleep(0.05)
        child.send_signal(signal.SIGINT)
        _, told = child.communicate(timeout=60)
    assert child.returncode == 130, told
    assert "--resume goes on from here" in told
    rows = json.loads(anban("runs", "list", "--out", tmp_path, "--json").stdout)
    assert rows[0]["state"] == "interrupted"
    folder = next(tmp_path.glob("change/*/*/run.json")).parent
    step = json.loads((folder / "run.json").read_text())["progress"]["step"]
    done = anban(
        "run", "--resume", folder, f"train.iterations={step + 2}", "--out", tmp_path, "--device", "cpu"
    )
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()) == folder
    assert json.loads((folder / "run.json").read_text())["progress"]["step"] == step + 2


def test_traceback_on_demand() -> None:
    done = anban("show", "change/none", "--traceback")
    assert done.returncode != 0
    assert "Traceback" in done.stderr
