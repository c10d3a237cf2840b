"""Measuring things turn by turn, and the files and the table that come of it.

A figure is a ratio, ours / peer, of two measurements made next to each other in one process, so that other work on the
machine hits both. A row has one ratio per pair and reports the median with the smallest and the largest. Beside the
wall time stands the processor time of the process and its children, which other work disturbs less. Nothing here is
asserted: whether a ratio is good is for the reader.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import torch
from matplotlib.figure import Figure

from anban.record.environment import commit, environment

FORMAT = "anban-benchmark/1"
PACKAGES = ("torch", "torchvision", "numpy", "pillow", "torchmetrics", "scipy")


class Unavailable(Exception):
    """This benchmark cannot run here; the text says why."""


# Measuring ------------------------------------------------------------------------------------------------------


class Taken(NamedTuple):
    """One measurement: seconds of wall time with those of the processor, or MB (which have no such part)."""

    value: float
    cpu: float | None = None


Measure = Callable[[], Taken]
Values = dict[str, list[Taken]]


class Clock:
    """What has passed since it was made."""

    def __init__(self) -> None:
        self.wall, self.cpu = time.perf_counter(), _processor()

    def taken(self, parts: int = 1) -> Taken:
        return Taken((time.perf_counter() - self.wall) / parts, (_processor() - self.cpu) / parts)


def _processor() -> float:
    """Processor seconds of this process and of its children that have ended."""
    try:
        import resource
    except ImportError:  # not on Windows
        return time.process_time()
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def seconds(work: Callable[[], object], repeat: int = 1) -> Measure:
    """A measurement of the time of one call, averaged over `repeat` calls in a row (for short ones)."""

    def measure() -> Taken:
        clock = Clock()
        for _ in range(repeat):
            work()
        return clock.taken(repeat)

    return measure


def megabytes(work: Callable[[], object]) -> Measure:
    """A measurement of how far the process's resident memory rises above its level before, in MB, at the worst moment.

    Unavailable where the kernel does not offer a peak that can be reset (anything but Linux).
    """

    def measure() -> Taken:
        gc.collect()
        try:
            ctypes.CDLL("libc.so.6").malloc_trim(0)  # gives back what earlier work has freed
            Path("/proc/self/clear_refs").write_text("5")
        except (OSError, AttributeError) as error:
            raise Unavailable(f"peak memory cannot be measured here ({error})") from None
        before = _resident("VmRSS")
        work()
        return Taken((_resident("VmHWM") - before) / 1e6)

    return measure


def _resident(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


def interleave(measures: Mapping[str, Measure], rounds: int, *, warm: bool = True) -> Values:
    """A B C A B C ...: the values of each, one per round; `warm` adds a first round that is thrown away."""
    values: Values = {name: [] for name in measures}
    for number in range(-1 if warm else 0, rounds):
        for name, measure in measures.items():
            value = measure()
            if number >= 0:
                values[name].append(value)
    return values


# Rows -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """One comparison.

    Attributes:
        case: what both of them do.
        ours, peer: the two, in words.
        ours_taken, peer_taken: as many of each; those of one place were measured next to each other.
        unit: s (seconds) or MB.
    """

    case: str
    ours: str
    peer: str
    ours_taken: Sequence[Taken]
    peer_taken: Sequence[Taken]
    unit: str = "s"

    @property
    def ratios(self) -> list[float]:
        return [a.value / b.value for a, b in zip(self.ours_taken, self.peer_taken, strict=True)]

    @property
    def cpu_ratios(self) -> list[float]:
        """The same of processor time; empty for memory."""
        pairs = zip(self.ours_taken, self.peer_taken, strict=True)
        return [a.cpu / b.cpu for a, b in pairs if a.cpu is not None and b.cpu]

    def cells(self) -> list[str]:
        """The row as the table shows it."""
        figures = [_span([t.value for t in taken], self.unit) for taken in (self.ours_taken, self.peer_taken)]
        cpu = _span(self.cpu_ratios) if self.cpu_ratios else "–"
        return [self.case, self.ours, self.peer, *figures, _span(self.ratios), cpu, str(len(self.ratios))]

    def __str__(self) -> str:
        case, ours, peer, ours_figure, peer_figure, ratio, cpu, pairs = self.cells()
        return (
            f"{case}: {ours} {ours_figure}, {peer} {peer_figure}; ratio {ratio}, of CPU {cpu}, {pairs} pairs"
        )

    def to_dict(self) -> dict[str, Any]:
        sides = {"ours": (self.ours, self.ours_taken), "peer": (self.peer, self.peer_taken)}
        return {
            "case": self.case,
            "unit": self.unit,
            **{
                side: {
                    "what": what,
                    "values": [_short(t.value) for t in taken],
                    "cpu": [_short(t.cpu) for t in taken],
                }
                for side, (what, taken) in sides.items()
            },
            "pairs": len(self.ratios),
            "ratio": _summary(self.ratios),
            "cpu_ratio": _summary(self.cpu_ratios),
        }

    @staticmethod
    def from_dict(row: Mapping[str, Any]) -> Row:
        taken = [
            [Taken(value, cpu) for value, cpu in zip(row[side]["values"], row[side]["cpu"], strict=True)]
            for side in ("ours", "peer")
        ]
        return Row(row["case"], row["ours"]["what"], row["peer"]["what"], taken[0], taken[1], row["unit"])


def row(values: Values, case: str, ours: str, peer: str, unit: str = "s") -> Row:
    """The row of two names out of `interleave`'s values."""
    return Row(case, ours, peer, values[ours], values[peer], unit)


def _summary(ratios: Sequence[float]) -> dict[str, float | None] | None:
    if not ratios:
        return None
    return {
        "median": _short(statistics.median(ratios)),
        "min": _short(min(ratios)),
        "max": _short(max(ratios)),
    }


def _short(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.5g}")


def _span(values: Sequence[float], unit: str | None = None) -> str:
    """Median and range, such as "48.0 ms (47.0–49.0)"."""
    middle = statistics.median(values)
    factor, digits, name = 1.0, 2, ""
    if unit == "s" and middle < 1:
        factor, digits, name = 1e3, 0 if middle >= 0.1 else 1, " ms"
    elif unit is not None:
        digits, name = 0 if unit == "MB" else 2, f" {unit}"
    low, mid, high = (f"{factor * v:.{digits}f}" for v in (min(values), middle, max(values)))
    return f"{mid}{name} ({low}–{high})" if len(values) > 1 else f"{mid}{name}"


class Findings(NamedTuple):
    """What a benchmark with a page of its own hands over: its rows, whatever else it found, the page, a picture for it."""

    rows: Sequence[Row]
    details: Mapping[str, Any]
    page: str
    picture: Figure | None = None


# Files ----------------------------------------------------------------------------------------------------------


def machine() -> dict[str, Any]:
    """Processor, cores, threads used, load at this moment, and the versions that can change a figure."""
    found = environment()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        model = platform.processor() or platform.machine()
    return {
        "cpu": model,
        "cores": found["cpus"],
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "platform": found["platform"],
        "python": found["python"],
        "packages": found["packages"],
    }


def write_results(folder: Path, name: str, about: str, found: Findings | Sequence[Row], took: float) -> Path:
    """`<folder>/<name>.json`: every single value, with the date, the commit and the machine; `<name>.md` and `<name>.png`."""
    findings = found if isinstance(found, Findings) else Findings(found, {}, "")
    content: dict[str, Any] = {
        "format": FORMAT,
        "name": name,
        "about": " ".join(about.split()),
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "commit": commit(),
        "seconds": round(took, 1),
        "machine": machine(),
        "rows": [row.to_dict() for row in findings.rows],
    }
    folder.mkdir(parents=True, exist_ok=True)
    if findings.page:
        content |= {"page": f"{name}.md", "details": findings.details}
        (folder / f"{name}.md").write_text(findings.page, encoding="utf-8")
    if findings.picture:
        findings.picture.savefig(folder / f"{name}.png", dpi=150, bbox_inches="tight")
    file = folder / f"{name}.json"
    file.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return file


INTRODUCTION = """\
# Figures

Written by `python -m benchmarks` (`make bench`). A ratio is ours / peer, the two measured turn by turn in one run: below
1, ours takes less. All figures are medians, with the smallest and the largest in brackets. The first ratio is of wall time
(or memory), the second of processor time. Absolute figures depend on the machine and on what else it does, ratios much
less. The JSON files hold the single values.
"""


def write_table(folder: Path, names: Iterable[str]) -> Path:
    """`<folder>/README.md`: the rows of the JSON files there that have no page, and when and where each was measured."""
    paths = [folder / f"{name}.json" for name in names]
    files = [json.loads(path.read_text(encoding="utf-8")) for path in paths if path.is_file()]
    header = ("benchmark", "case", "ours", "peer", "ours takes", "peer takes", "ratio", "CPU ratio", "pairs")
    lines = [INTRODUCTION, line(header), line(["---"] * len(header))]
    for file in files:
        if "page" in file:
            continue
        lines += [line([file["name"], *Row.from_dict(row).cells()]) for row in file["rows"]]
    lines += ["", "## What is compared, when and where"]
    for place in dict.fromkeys(_place(file) for file in files):
        lines += ["", f"On {place}:", ""]
        lines += [_entry(file) for file in files if _place(file) == place]
    readme = folder / "README.md"
    folder.mkdir(parents=True, exist_ok=True)
    readme.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return readme


def page(title: str, rows: Sequence[Row], lists: Mapping[str, Sequence[str]]) -> str:
    """The table of the rows, and below it each list that is not empty, under its heading."""
    header = ["case", "ours", "peer", "ours takes", "peer takes", "ratio", "CPU ratio", "pairs"]
    lines = [f"# {title}", "", *table(header, [row.cells() for row in rows])]
    for heading, items in lists.items():
        if items:
            lines += ["", heading, "", *(f"- {item}" for item in items)]
    return "\n".join(lines) + "\n"


def table(header: Sequence[str], lines: Iterable[Sequence[str]]) -> list[str]:
    """The lines of a table."""
    return [line(header), line(["---"] * len(header)), *map(line, lines)]


def line(cells: Iterable[str]) -> str:
    """A line of a table."""
    return f"| {' | '.join(cells)} |"


def _place(file: Mapping[str, Any]) -> str:
    of = file["machine"]
    versions = ", ".join(f"{name} {of['packages'][name]}" for name in PACKAGES if name in of["packages"])
    threads = f"{of['threads']} thread{'s' if of['threads'] > 1 else ''} used"
    return f"{of['cpu']}, {of['cores']} cores, {threads}, {of['platform']}, Python {of['python']}, {versions}"


def _entry(file: Mapping[str, Any]) -> str:
    code, plus, state = (file["commit"] or "unknown").partition("+")
    measured = f"{file['date']}, commit {code[:12]}{plus}{state}, {file['seconds']:.0f} s, load {file['machine']['load']}"
    name = f"[{file['name']}]({file['page']})" if "page" in file else file["name"]
    return f"- **{name}** ({measured}): {file['about']}"
