"""`anban audit` at the command line."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from anban.cli.main import main


def anban(monkeypatch: pytest.MonkeyPatch, *words: object) -> int:
    monkeypatch.setattr(sys, "argv", ["anban", "audit", *map(str, words)])
    with pytest.raises(SystemExit) as end:
        main()
    return int(end.value.code or 0)


def test_an_audit_acts_and_is_taken_back(
    collection: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    common = (collection, "--out", out, "--checks", "quality", "--workers", 0)
    assert anban(monkeypatch, *common) == 0
    told = capsys.readouterr().out
    assert "13 files, 4 fit" in told
    assert str(out / "audit.html") in told
    assert anban(monkeypatch, *common, "--apply", "move", "--json") == 0
    applied = json.loads(capsys.readouterr().out)["applied"]
    assert applied["done"] == 9
    assert anban(monkeypatch, "--undo", applied["undo"]) == 0
    assert "9 files taken back" in capsys.readouterr().out
    assert (collection / "bad" / "soft.jpg").is_file()


def test_passwords_are_read_from_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from tests.audit.test_archives import FILES, locked

    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "a.zip").write_bytes(locked(FILES, "海报2024"))
    (tmp_path / "words.txt").write_text("one\n海报2024\n", encoding="utf-8")
    words = (tmp_path / "tree", "--out", tmp_path / "out", "--workers", 0, "--checks", "quality")
    assert anban(monkeypatch, *words, "--passwords", tmp_path / "words.txt", "--json") == 0
    capsys.readouterr()
    lines = (tmp_path / "out" / "findings.jsonl").read_text(encoding="utf-8").splitlines()
    told = {each["problem"]: each["data"] for each in map(json.loads, lines)}
    assert told["password_protected"]["password"] == "海报2024"
    assert told["archive"]["pictures"] == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "A folder to audit"),
        (("nowhere", "--out", "out"), "no such folder"),
        ((".", "--out", "inside"), "in the audited tree"),
        ((".", "--out", "../elsewhere", "--passwords", "nothing.txt"), "passwords cannot be read"),
        (("--undo", "nothing.jsonl"), "no undo file"),
    ],
)
def test_bad_input_ends_with_one_message(
    words: tuple[str, ...],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert anban(monkeypatch, *words) == 2
    assert message in capsys.readouterr().err


def test_an_audit_needs_no_torch(tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    code = (
        "import sys; from pathlib import Path; from anban.audit.run import Audit, audit; "
        f"audit(Audit(Path({str(tmp_path / 'tree')!r}), Path({str(tmp_path / 'out')!r}), checks=('quality',), workers=0)); "
        "print([name for name in ('torch', 'onnxruntime', 'rapidocr', 'py7zr', 'ray') if name in sys.modules])"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert told.strip() == "[]"


def test_a_missing_library_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from tests.audit.test_archives import FILES, sevened

    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "a.7z").write_bytes(sevened(FILES))
    monkeypatch.setitem(sys.modules, "py7zr", None)
    words = (tmp_path / "tree", "--out", tmp_path / "out", "--workers", 0, "--checks", "quality")
    assert anban(monkeypatch, *words) == 2
    assert "pip install 'anban[audit]'" in capsys.readouterr().err
