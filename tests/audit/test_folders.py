"""A mark that the pictures of a folder share is found, on those that carry it and on no other."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from anban.audit.folders import Member, different
from tests.audit.conftest import encoded, scene
from tests.audit.test_run import problems, run


def marked(image: Image.Image) -> Image.Image:
    """The picture with a logo in its corner, laid over it half transparent."""
    layer = Image.new("RGBA", image.size, (0, 0, 0, 0))
    draw = ImageDraw.Draw(layer)
    x, y = image.width - 150, image.height - 90
    draw.ellipse((x, y, x + 60, y + 60), outline=(255, 255, 255, 170), width=6)
    draw.rectangle((x + 75, y + 10, x + 130, y + 50), outline=(255, 255, 255, 170), width=6)
    draw.line((x + 10, y + 70, x + 130, y + 70), fill=(255, 255, 255, 170), width=6)
    return Image.alpha_composite(image.convert("RGBA"), layer).convert("RGB")


def test_a_mark_that_a_folder_shares_is_found_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "tree"
    for folder in ("shop", "others"):
        (root / folder).mkdir(parents=True)
        for number in range(14):
            image = scene(number + (50 if folder == "others" else 0))
            if folder == "shop" and number != 5:
                image = marked(image)
            (root / folder / f"{number:02}.jpg").write_bytes(encoded(image, "JPEG", quality=92))
    run(root, tmp_path / "out", checks=("watermark",))
    told = {path for path, names in problems(tmp_path / "out").items() if "watermark" in names}
    assert told == {f"shop/{number:02}.jpg" for number in range(14) if number != 5}

    def again(*_: object) -> None:
        raise AssertionError("an unchanged folder was compared again")

    monkeypatch.setattr("anban.audit.folders.compare", again)
    run(root, tmp_path / "out", checks=("watermark",))
    assert {path for path, names in problems(tmp_path / "out").items() if "watermark" in names} == told


def test_only_different_pictures_are_compared() -> None:
    draw = np.random.default_rng(0)
    values = [int(value) for value in draw.integers(0, 1 << 63, 5)]
    members = [Member(bytes([i]), value ^ flip) for i, value in enumerate(values) for flip in (0, 1, 3)]
    assert [member.hash for member in different(members, 10)] == values
    assert len(different(members, 3)) == 3
