"""Files of quoted numbers: read as fractions, and every mistake named with file and key."""

from __future__ import annotations

from pathlib import Path

import pytest

from anban.errors import InputError
from anban.study.quoted import read_quoted

QUOTED = """
quoted:
  - method: ChangeFormer
    data: LEVIR-CD
    scores: {precision: 92.05, f1: 90.4}
    protocol: 256 px crops
    source: {title: Bandara and Patel 2022, arxiv: "2201.01293", table: 1}
  - method: BIT
    data: LEVIR-CD
    scores: {f1: 89.31}
    source: {title: Chen et al. 2021, doi: 10.1109/TGRS.2021.3095166, table: II}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "papers.yaml").write_text(QUOTED)
    return tmp_path / "papers.yaml"


def test_percent_become_fractions_and_sources_one_line(file):
    one, two = read_quoted(file)
    assert one.scores == {"precision": 0.9205, "f1": 0.904}
    assert str(one.source) == "Bandara and Patel 2022, arXiv:2201.01293, table 1"
    assert str(two.source) == "Chen et al. 2021, doi:10.1109/TGRS.2021.3095166, table II"
    assert (one.protocol, two.protocol) == ("256 px crops", "")


@pytest.mark.parametrize(
    ("old", "new", "key", "what"),
    [
        ("f1: 89.31", "f1: 893.1", "quoted.1.scores.f1", "at most 100"),
        ("f1: 89.31", "f1: high", "quoted.1.scores.f1", "a finite number"),
        ("f1: 89.31", "ff1: 89.31", "quoted.1.scores", "did you mean 'f1'"),
        ("f1: 89.31", "f1: 0.8931", "quoted.1.scores", "look like fractions"),
        ("{f1: 89.31}", "{}", "quoted.1.scores", "at least 1"),
        ('arxiv: "2201.01293"', "arxiv: 2201.01293", "quoted.0.source.arxiv", "a word"),
        (', arxiv: "2201.01293"', "", "quoted.0.source", "neither DOI nor arXiv"),
        (", table: 1}", "}", "quoted.0.source.table", "A value is needed"),
        ("table: 1", "tabel: 1", "quoted.0.source.tabel", "did you mean 'quoted.0.source.table'"),
        ("  - method: BIT\n    data", "  - data", "quoted.1.method", "A value is needed"),
        ("quoted:", "qouted:", "qouted", "one key 'quoted'"),
        ("quoted:", "quoted: 3\nrows:", "quoted, rows", "with a list of rows"),
    ],
)
def test_mistakes_are_named_with_file_and_key(file, old, new, key, what):
    assert QUOTED.count(old) == 1
    file.write_text(QUOTED.replace(old, new))
    with pytest.raises(InputError) as error:
        read_quoted(file)
    assert str(file) in str(error.value)
    assert key in str(error.value)
    assert what in str(error.value)
    assert "command line" not in str(error.value)


def test_scores_that_are_no_shares_stay_as_printed(tmp_path):
    file = tmp_path / "papers.yaml"
    file.write_text(QUOTED.replace("{f1: 89.31}", "{psnr: 31.2, ssim: 0.91, miou: 76.2}"))
    assert read_quoted(file)[1].scores == {"psnr": 31.2, "ssim": 0.91, "miou": 0.762}
    file.write_text(QUOTED.replace("{f1: 89.31}", "{ssim: 0.91}"))
    assert read_quoted(file)[1].scores == {"ssim": 0.91}


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"none\.yaml"):
        read_quoted(tmp_path / "none.yaml")
