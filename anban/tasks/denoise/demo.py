"""Generated CT at two doses: a phantom, its projections, the noise of few photons, and its reconstruction.

A slice is an ellipse of soft tissue with organs, lungs, bones and small lesions. Parallel projections are turned into
counts of photons, which are drawn (Poisson) with the detector's electronic noise (Gaussian) added; their logarithm is
reconstructed by filtered back-projection. Both doses see the same phantom with noise of their own. So noise is
correlated, stronger where much tissue is in the way, and streaks between dense parts, as in real low-dose CT; scores
on such slices say nothing about patients.

    python -m anban.tasks.denoise.demo FOLDER

Projection and reconstruction are scikit-image's `radon` and `iradon`. Every slice is a pure function of its seed.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from skimage.transform import iradon, radon

from anban.data.draws import derive
from anban.data.generated import write_generated
from anban.errors import InputError

WATER = 0.0192
"""Attenuation of water at about 70 keV, per millimetre."""
OFFSET = 1024
"""Added to Hounsfield units in the written files."""
VERSION = 1

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Scanner:
    """How a phantom is seen.

    Attributes:
        photons: per detector element at full dose, without anything in the way.
        dose: share of them at low dose.
        electronic: standard deviation of the detector's own noise, in photons.
        views: projections over half a turn.
        pixel: side of a pixel in millimetres.
    """

    photons: float = 1e5
    dose: float = 0.25
    electronic: float = 10.0
    views: int = 180
    pixel: float = 2.8


def phantom(seed: int, size: int) -> Floats:
    """A slice of a body (size, size) in Hounsfield units, air around it; it lies within the inscribed circle."""
    draw = np.random.default_rng(seed)
    image = np.full((size, size), -1000.0)

    def ellipse(x: float, y: float, a: float, b: float, hounsfield: float, turn: float = 0.0) -> None:
        """Centre and half axes in half sides of the picture, from its middle."""
        rows, columns = np.mgrid[-1 : 1 : size * 1j, -1 : 1 : size * 1j]
        u, v = columns - x, rows - y
        u, v = u * np.cos(turn) + v * np.sin(turn), v * np.cos(turn) - u * np.sin(turn)
        image[(u / a) ** 2 + (v / b) ** 2 <= 1] = hounsfield

    wide, tall = draw.uniform(0.72, 0.9), draw.uniform(0.5, 0.66)
    ellipse(0, 0, wide, tall, -100)  # fat
    ellipse(0, 0, wide - 0.06, tall - 0.06, 45)  # muscle
    for side in (-1, 1):
        x, y = side * draw.uniform(0.34, 0.4), draw.uniform(-0.12, 0.02)
        ellipse(x, y, draw.uniform(0.2, 0.28), draw.uniform(0.22, 0.36), draw.uniform(-850, -750))  # lung
        for _ in range(6):
            a, b = draw.uniform(0.008, 0.03, 2)
            ellipse(
                x + draw.uniform(-0.12, 0.12), y + draw.uniform(-0.16, 0.16), a, b, 30, draw.uniform(0, 3)
            )
    ellipse(draw.uniform(-0.08, 0.08), -0.08, draw.uniform(0.12, 0.18), draw.uniform(0.14, 0.2), 60)  # heart
    ellipse(0, tall - 0.2, 0.09, 0.08, draw.uniform(350, 600))  # spine
    ellipse(0, tall - 0.2, 0.035, 0.035, 30)
    for turn in np.linspace(0.3, 2 * np.pi + 0.3, draw.integers(8, 13), endpoint=False):
        ellipse(
            (wide - 0.1) * np.cos(turn), (tall - 0.1) * np.sin(turn), 0.035, 0.018, 500, turn + np.pi / 2
        )  # ribs
    for _ in range(draw.integers(4, 9)):  # lesions, from faint to plain
        x, y, radius = draw.uniform(-0.4, 0.4), draw.uniform(-0.3, 0.3), draw.uniform(0.015, 0.05)
        ellipse(x, y, radius, radius * draw.uniform(0.7, 1), draw.uniform(0, 140))
    return image


def scan(image: Floats, scanner: Scanner, dose: float, draw: np.random.Generator) -> Floats:
    """What a scanner reconstructs of a slice at a share of its photons.

    Args:
        image: (size, size) in Hounsfield units, air outside of the inscribed circle.
        scanner: how it sees.
        dose: share of its photons.
        draw: the noise's generator.

    Returns:
        (size, size) in Hounsfield units.
    """
    attenuation = np.clip(1 + image / 1000, 0, None) * WATER * scanner.pixel
    angles = np.linspace(0, 180, scanner.views, endpoint=False)
    lines: Floats = radon(attenuation, theta=angles, circle=True)  # type: ignore[no-untyped-call]
    photons = scanner.photons * dose
    counts = draw.poisson(photons * np.exp(-lines)) + draw.normal(0, scanner.electronic, lines.shape)
    measured = -np.log(np.maximum(counts, 1) / photons)
    restored: Floats = iradon(measured, theta=angles, filter_name="ramp", circle=True)  # type: ignore[no-untyped-call]
    return 1000 * (restored / (WATER * scanner.pixel) - 1)


def make_slice(seed: int, size: int, scanner: Scanner) -> tuple[Floats, Floats]:
    """A slice at low and at full dose, (size, size) each, in Hounsfield units."""
    image = phantom(seed, size)
    low, full = (
        scan(image, scanner, dose, np.random.default_rng((seed, number)))
        for number, dose in enumerate((scanner.dose, 1.0))
    )
    return low, full


def write_demo(
    root: str | Path,
    *,
    train: int = 6,
    val: int = 1,
    test: int = 2,
    slices: int = 4,
    size: int = 128,
    scanner: Scanner | None = None,
    seed: int = 0,
) -> Path:
    """Write patients as `{quarter,full}/<split>/P001_01.png`, 16 bits, Hounsfield units plus 1024.

    The folder appears complete or not at all; see `anban.data.generated.write_generated`.

    Args:
        root: the folder to write; its parents are made.
        train, val, test: patients in each split, 0 or more; no patient is in two.
        slices: of each patient.
        size: side of the slices in pixels.
        scanner: how they are seen; by default at a quarter of the dose.
        seed: from 0 on.

    Raises:
        InputError: `root` is a file, or a folder with anything else in it; a count or the seed is below 0.
    """
    counts = {"train": train, "val": val, "test": test}
    for name, value in (*counts.items(), ("slices", slices), ("seed", seed)):
        if value < 0:
            raise InputError(f"{name} is {value}", where=f"write_demo, {name}", expected="0 or more")
    scanner = scanner or Scanner()
    patients = [split for split, count in counts.items() for _ in range(count)]
    jobs = [(split, patient, number) for patient, split in enumerate(patients, 1) for number in range(slices)]

    def files(job: tuple[str, int, int]) -> list[str]:
        split, patient, number = job
        return [f"{dose}/{split}/P{patient:03d}_{number:02d}.png" for dose in ("quarter", "full")]

    def write(job: tuple[str, int, int], paths: Sequence[Path]) -> None:
        for pixels, path in zip(make_slice(derive(seed, *job), size, scanner), paths, strict=True):
            stored = np.clip(np.rint(pixels) + OFFSET, 0, 2**16 - 1).astype(np.uint16)
            Image.fromarray(stored).save(path, compress_level=4)

    return write_generated(
        Path(root),
        {"task": "denoise", "version": VERSION, "seed": seed, "splits": counts, "slices": slices, "size": size,
         "scanner": vars(scanner)},
        [f"{dose}/{split}" for dose in ("quarter", "full") for split in counts],
        jobs,
        files,
        write,
    )  # fmt: skip


if __name__ == "__main__":
    print(write_demo(Path(sys.argv[1])) if len(sys.argv) == 2 else __doc__)
