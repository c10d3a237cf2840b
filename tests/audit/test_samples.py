"""The labelled sample tree: what the audit says beside what a person said."""

from __future__ import annotations

import csv
import os
import shutil
from pathlib import Path

import pytest

from tests.audit.test_run import problems, run

DATA = Path(os.environ.get("ANBAN_DATA", "")) / "audit"

pytestmark = pytest.mark.skipif("ANBAN_DATA" not in os.environ, reason="ANBAN_DATA is not set")

#: A label and what of ours says the same: to the labels a picture that cannot be decoded is no picture.
SAME = {"non_image_file": {"non_image_file", "corrupt"}}


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, set[str]]:
    folder = tmp_path_factory.mktemp("samples")
    tree = folder / "tree"
    shutil.copytree(DATA / "messy", tree / "messy", copy_function=shutil.copyfile)
    for line in (DATA / "empty_folders.txt").read_text(encoding="utf-8").splitlines():
        (tree / line).mkdir(parents=True, exist_ok=True)
    run(tree, folder / "out")
    return problems(folder / "out")


@pytest.mark.parametrize(
    "problem",
    ["non_image_file", "archive", "password_protected", "empty_folder", "low_resolution", "blurred"],
)
def test_what_is_labelled_is_found_and_nothing_else(problem: str, told: dict[str, set[str]]) -> None:
    with open(DATA / "labels.csv", encoding="utf-8", newline="") as file:
        labels = {row["path"]: set(row["problems"].split(";")) for row in csv.DictReader(file)}
    ours = SAME.get(problem, {problem})
    assert {path for path, names in told.items() if names & ours} == {
        path for path, names in labels.items() if problem in names
    }


def test_what_has_no_label_is_found_too(told: dict[str, set[str]]) -> None:
    assert "duplicate" in told["messy/海报 合集/sale copy.jpg"]
    assert "near_duplicate" in told["messy/camera/soft_print.jpg"]  # blurred from 15.jpg
    assert "wrong_extension" in told["messy/illust/line_01.png"]  # a JPEG
