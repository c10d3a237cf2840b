"""`anban data --page`: a page of pictures for every task."""

from __future__ import annotations

import importlib
import json
import re
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from anban.cli.main import app
from anban.data.browse import chosen

TAGS = {"change": "change", "segment": "class", "detect": "class", "denoise": "patient"}
NUMBERS = {"change": "changed (%)", "segment": "classes", "detect": "objects", "denoise": "noise (HU)"}


@pytest.mark.parametrize("task", TAGS)
def test_every_task_has_a_page_of_its_data(task: str, tmp_path: Path) -> None:
    demo: Any = importlib.import_module(f"anban.tasks.{task}.demo")
    size = (64, 64) if task == "segment" else 64
    root = demo.write_demo(tmp_path / "data", train=2, val=2, test=2, size=size)
    words = ["data", str(root), "--task", task, "--out", str(tmp_path / "out"), "--page", "--limit", "3"]
    done = CliRunner().invoke(app, words, catch_exceptions=False)
    page = Path(done.stdout.splitlines()[-1])
    text = page.read_text(encoding="utf-8")
    found = re.search(r'<script type="application/json" id="items">(.*?)</script>', text, re.DOTALL)
    assert found is not None
    items = json.loads(found[1])
    assert len(items) == 3
    for item in items:
        assert item["tags"][TAGS[task]]
        assert item["numbers"][NUMBERS[task]] >= 0
        assert len(item["picture"]) < 60_000
    assert f'data-filter="{TAGS[task]}"' in text
    assert f"<option>{NUMBERS[task]}</option>" in text


def test_what_comes_first_is_kept_and_the_rest_is_spread() -> None:
    splits = {"a": list(range(10)), "b": list(range(10, 20))}
    assert chosen(splits, 4) == [("a", 0), ("a", 5), ("b", 10), ("b", 15)]
    assert chosen(splits, 2, lambda each: each in (3, 19)) == [("a", 3), ("b", 19)]
    assert ("b", 19) in chosen(splits, 3, lambda each: each == 19)
    assert len(chosen(splits, 50)) == 20
