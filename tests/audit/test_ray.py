"""The same pipeline on Ray: a local one of two workers (make test-ray)."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.audit.test_run import findings, run


@pytest.mark.ray
def test_two_workers_of_a_local_ray_find_the_same(collection: Path, tmp_path: Path) -> None:
    run(collection, tmp_path / "here")
    (tmp_path / "small.yaml").write_text("run: {chunk: 2}\n")
    summary = run(collection, tmp_path / "there", launcher="ray", workers=2, changes=tmp_path / "small.yaml")
    assert summary["pass"]["looked_at"] == 13
    assert findings(tmp_path / "there") == findings(tmp_path / "here")
