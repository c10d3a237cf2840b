"""Windows cover a picture, and what is predicted window by window comes back in its place."""

from __future__ import annotations

import pytest
import torch

from anban.data.tiles import grid, pad_reflect, pad_to_multiple, predict_tiled
from anban.errors import InputError


def test_grid_by_hand() -> None:
    assert grid(5, 4, 2, 2) == [(0, 0), (0, 2), (2, 0), (2, 2), (3, 0), (3, 2)]
    assert grid(4, 4, 4, 1) == [(0, 0)]
    assert grid(3, 9, 4, 4) == [(0, 0), (0, 4), (0, 5)]


@pytest.mark.parametrize(
    ("height", "width", "size", "stride"), [(63, 100, 16, 7), (256, 256, 256, 128), (65, 64, 64, 64)]
)
def test_grid_covers_and_stays_inside(height: int, width: int, size: int, stride: int) -> None:
    seen = torch.zeros(height, width)
    corners = grid(height, width, size, stride)
    for top, left in corners:
        assert 0 <= top <= height - size
        assert 0 <= left <= width - size
        seen[top : top + size, left : left + size] += 1
    assert seen.min() >= 1
    assert len(set(corners)) == len(corners)


@pytest.mark.parametrize(("size", "stride"), [(0, 1), (4, 0), (4, 5)])
def test_grid_that_would_leave_gaps_is_refused(size: int, stride: int) -> None:
    with pytest.raises(InputError, match="do not cover"):
        grid(9, 9, size, stride)


def test_pad_reflect_agrees_with_torch_and_goes_further() -> None:
    x = torch.rand(2, 3, 5, 6)
    torch.testing.assert_close(
        pad_reflect(x, 1, 2, 3, 4), torch.nn.functional.pad(x, (3, 4, 1, 2), mode="reflect")
    )
    row = torch.tensor([[0, 1, 2]], dtype=torch.uint8)
    assert pad_reflect(row, 0, 0, 0, 6)[0].tolist() == [0, 1, 2, 1, 0, 1, 2, 1, 0]
    assert pad_reflect(row[:, :1], 0, 0, 0, 2)[0].tolist() == [0, 0, 0]


@pytest.mark.parametrize(("height", "width", "multiple"), [(5, 8, 4), (8, 8, 8), (3, 1, 16)])
def test_pad_to_multiple_and_back(height: int, width: int, multiple: int) -> None:
    x = torch.rand(1, 2, height, width)
    padded, crop = pad_to_multiple(x, multiple)
    assert padded.shape[-2] % multiple == 0
    assert padded.shape[-1] % multiple == 0
    assert padded.shape[-2] - height < multiple
    assert padded.shape[-1] - width < multiple
    torch.testing.assert_close(padded[crop], x)


def difference(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return (a - b).abs().mean(dim=1, keepdim=True)


@pytest.mark.parametrize(("size", "stride"), [(8, 8), (8, 3), (16, 5), (64, 32)])
@pytest.mark.parametrize("shape", [(21, 30), (16, 16), (5, 40)])
def test_pixelwise_prediction_does_not_depend_on_tiling(
    size: int, stride: int, shape: tuple[int, int]
) -> None:
    a, b = torch.rand(2, 2, 3, *shape)
    got = predict_tiled(difference, a, b, size, stride, windows_per_batch=3)
    assert got.shape == (2, 1, *shape)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, difference(a, b))


def test_overlaps_are_averaged() -> None:
    """Windows that answer with their own number: 1, 2, 3 from left to right, by hand."""
    numbers = iter([1.0, 2.0, 3.0])

    def numbered(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return torch.stack([torch.full((1, 4, 4), next(numbers)) for _ in a])

    a = torch.zeros(1, 3, 4, 8)
    got = predict_tiled(numbered, a, a, size=4, stride=2, windows_per_batch=2)
    assert got[0, 0, 0].tolist() == [1, 1, 1.5, 1.5, 2.5, 2.5, 3, 3]


def test_windows_per_batch_bounds_the_batch_only() -> None:
    sizes = []

    def seen(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        sizes.append(len(a))
        return difference(a, b)

    a, b = torch.rand(2, 3, 3, 8, 8)
    predict_tiled(seen, a, b, 4, 4, windows_per_batch=5)
    assert sizes == [5, 5, 2]
