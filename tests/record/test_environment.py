"""What a run was made with."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from anban.record import RunFolder
from anban.record import environment as module
from anban.record.environment import commit, environment, patch


def git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), "-c", "user.name=a", "-c", "user.email=a@b.c", *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def code(tmp_path: Path) -> Path:
    """A folder `code` with one committed file in a repository."""
    folder = tmp_path / "repository" / "code"
    folder.mkdir(parents=True)
    (folder / "a.py").write_text("a = 1\n")
    git(folder.parent, "init", "-q")
    git(folder.parent, "add", ".")
    git(folder.parent, "commit", "-q", "-m", "first")
    return folder


def test_the_commit_and_whether_the_code_changed(code: Path) -> None:
    head = git(code, "rev-parse", "HEAD")
    assert commit(code) == head
    (code.parent / "results.txt").write_text("beside the code")
    assert commit(code) == head
    (code / "a.py").write_text("a = 2\n")
    assert commit(code) == head + "+dirty"
    git(code, "checkout", "-q", "a.py")
    (code / "new.py").write_text("")
    assert commit(code) == head + "+dirty"


def test_changed_code_is_kept_as_a_patch_that_makes_it_again(code: Path, tmp_path: Path) -> None:
    assert patch(code) == ""
    git(code.parent, "clone", "-q", ".", str(tmp_path / "clone"))
    (code.parent / "beside.txt").write_text("beside the code")
    (code / "a.py").write_text("a = 2\n")
    (code / "new.py").write_text("b = 'ü\u2028'\nc = 3")
    (code / "empty").mkdir()
    (code / "weights.bin").write_bytes(bytes(range(256)))
    (tmp_path / "code.patch").write_text(patch(code))
    git(tmp_path / "clone", "apply", str(tmp_path / "code.patch"))
    made = tmp_path / "clone" / "code"
    assert {file.name: file.read_text() for file in made.iterdir()} == {
        "a.py": "a = 2\n",
        "new.py": "b = 'ü\u2028'\nc = 3",
    }
    assert not (made.parent / "beside.txt").exists()


def test_a_patch_that_is_too_large_names_the_files(code: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (code / "a.py").write_text("a = 2\n" * 100)
    (code / "new.py").write_text("b = 3\n")
    monkeypatch.setattr(module, "PATCH_BYTES", 500)
    lines = patch(code).splitlines()
    assert lines[0] == "# too large to be kept; changed and new files:"
    assert any("code/a.py" in line for line in lines)
    assert lines[-1] == "# new.py"


def test_a_run_keeps_the_patch_of_each_part_that_had_another(
    code: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("anban.record.run.patch", lambda: patch(code))
    monkeypatch.setattr("anban.record.run.commit", lambda: commit(code))
    clean = RunFolder.create(tmp_path / "runs", "change/tiny", seed=0, info={"environment": {}})
    assert not list(clean.path.glob("*.patch"))
    (code / "a.py").write_text("a = 2\n")
    run = RunFolder.create(tmp_path / "runs", "change/tiny", seed=0, info={"environment": {}})
    run.resume()
    assert [file.name for file in run.path.glob("*.patch")] == ["code.patch"]
    (code / "a.py").write_text("a = 3\n")
    run.resume()
    assert "+a = 3" in (run.path / "code-3.patch").read_text()
    assert "+a = 2" in (run.path / "code.patch").read_text()


def test_code_that_is_not_in_git(tmp_path: Path, code: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert commit(tmp_path) is None
    assert commit(tmp_path / "missing") is None
    (code.parent / ".gitignore").write_text("venv\n")
    (code.parent / "venv").mkdir()
    assert commit(code.parent / "venv") is None
    monkeypatch.setenv("PATH", str(tmp_path))
    assert commit(code) is None


def test_a_repository_without_commits(tmp_path: Path) -> None:
    git(tmp_path, "init", "-q")
    assert commit(tmp_path) is None


def test_a_hooks_variables_do_not_mislead(
    code: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    head = git(code, "rev-parse", "HEAD")
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "nowhere"))
    assert commit(code) == head


def test_versions_and_machine() -> None:
    found = environment()
    assert found["python"].split(".")[0] == str(sys.version_info.major)
    assert found["packages"]["omegaconf"]
    assert found["packages"]["torch"] == found["torch"]
    assert None not in found["packages"].values()
    assert found["cpus"] >= 1


def test_the_gpu_is_asked_for_only_when_torch_is_there_and_never_stops_a_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Cuda:
        is_available = staticmethod(lambda: True)
        device_count = staticmethod(lambda: 1)

        @staticmethod
        def get_device_name(index: int) -> str:
            return f"GPU {index}"

    class Torch:
        cuda = Cuda
        version = type("version", (), {"cuda": "13.0"})

    monkeypatch.setitem(sys.modules, "torch", Torch)
    assert environment()["gpu"] == {"names": ["GPU 0"], "cuda": "13.0"}

    def broken(index: int) -> str:
        raise RuntimeError("driver in trouble")

    monkeypatch.setattr(Cuda, "get_device_name", staticmethod(broken))
    assert environment()["gpu"] is None
    monkeypatch.delitem(sys.modules, "torch")
    assert environment()["gpu"] is None
    assert "torch" not in sys.modules
