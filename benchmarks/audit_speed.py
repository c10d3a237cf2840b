"""The audit beside cleanvision and imagededup: files per second, question by question, on the same tree.

Both sides work in one process with one thread and are given the same files, turn by turn. The interpreter of the peers is
that which ANBAN_BENCH_PEERS names (`python -m venv DIR; DIR/bin/pip install cleanvision imagededup`); it is started once,
imports them before anything is measured, and tells its own times. Whole passes are compared (ours with everything that it
writes: index, findings, page), and single questions: ours as functions on files, theirs asked for that one issue alone.
What ours finds out on the same way (formats, archives, checksums, compression, enlargement) is not taken off. One tree is
written by code (see `audit_trees.pictures`), the other has the pictures of ANBAN_DATA's sample tree that can be decoded: on the
whole of it cleanvision ends with an error. ANBAN_BENCH_FILES sets the number of pictures.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from anban.audit import checks
from anban.audit.duplicates import close_pairs, print_of
from anban.audit.formats import PICTURE_EXTENSIONS
from anban.audit.limits import read_limits
from anban.audit.look import digest
from anban.audit.picture import TooLarge, Unreadable, read_picture
from anban.audit.run import Audit, audit
from benchmarks.audit_scale import WITHOUT_TEXT
from benchmarks.audit_trees import pictures, samples
from benchmarks.timing import (
    Findings,
    Measure,
    Row,
    Taken,
    Unavailable,
    interleave,
    page,
    row,
    seconds,
    table,
)

VARIABLE = "ANBAN_BENCH_PEERS"
FILES = int(os.environ.get("ANBAN_BENCH_FILES", "2000"))
HASHES = 5_000
ROUNDS = 3  # one takes minutes

#: Issues of cleanvision that our check `quality` answers: blur, and resolution with what there is in a picture.
POOR = ("blurry", "odd_size", "low_information")
TWICE = ("exact_duplicates", "near_duplicates")

PEERS = """
import contextlib, json, os, resource, sys, time, warnings
warnings.simplefilter("ignore")
told, nowhere = sys.stdout, open(os.devnull, "w")
sys.stdout = nowhere
import cleanvision, imagededup, logging
from importlib.metadata import version
from cleanvision import Imagelab
from imagededup.methods import DHash, PHash
logging.disable()

def processor():  # imagededup works in processes of its own
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime

def cleanvision(tree, *issues):
    Imagelab(data_path=tree).find_issues({name: {} for name in issues}, n_jobs=1, verbose=False)

def encode(method, tree):
    return globals()[method](verbose=False).encode_images(image_dir=tree, recursive=True, num_enc_workers=0)

def search(method, codes):
    if isinstance(codes, str):
        codes = json.load(open(codes))
    globals()[method](verbose=False).find_duplicates(
        encoding_map=codes, max_distance_threshold=6, num_dist_workers=0)

def both(method, tree):
    search(method, encode(method, tree))

print(json.dumps({name: version(name) for name in ("cleanvision", "imagededup")}), file=told, flush=True)
for line in sys.stdin:
    name, *given = json.loads(line)
    wall, cpu = time.perf_counter(), processor()
    globals()[name](*given)
    print(json.dumps([time.perf_counter() - wall, processor() - cpu]), file=told, flush=True)
"""


class Peers:
    """The other interpreter: one request a line, its wall and processor seconds come back."""

    def __init__(self) -> None:
        interpreter = os.environ.get(VARIABLE)
        if not interpreter:
            raise Unavailable(
                f"set {VARIABLE} to the Python of an environment with cleanvision and imagededup"
            )
        self.process = subprocess.Popen(
            [interpreter, "-c", PEERS],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "TQDM_DISABLE": "1"},
        )
        self.versions: dict[str, str] = self._answer()

    def measure(self, *request: str) -> Measure:
        def measure() -> Taken:
            assert self.process.stdin is not None
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
            return Taken(*self._answer())

        return measure

    def _answer(self) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise Unavailable("cleanvision or imagededup fails there")
        return json.loads(line)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()


def run(rounds: int) -> Findings:
    """Rows per question and tree; the page has files per second as well, and those of our checks without a peer."""
    peers = Peers()
    try:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            trees = {
                f"{FILES} pictures": pictures(folder / "pictures", FILES),
                "sample pictures": _only_pictures(samples(folder)),
            }
            sizes = {called: len(_files(tree)) for called, tree in trees.items()}
            rows: list[Row] = []
            for called, tree in trees.items():
                rows += _compare(peers, called, tree, folder, min(rounds, ROUNDS))
            rows += _search(peers, folder, min(rounds, ROUNDS))
            alone = {called: _alone(tree, folder / "alone" / called) for called, tree in trees.items()}
    finally:
        peers.close()
    details = {"files": sizes, "versions": peers.versions, "alone": alone}
    return Findings(rows, details, _page(rows, details))


def _only_pictures(tree: Path) -> Path:
    """The tree without the files that cannot be decoded or are not called like pictures."""
    limits = read_limits()["picture"]
    for file in _files(tree):
        try:
            with open(file, "rb") as opened:
                read_picture(opened, str(file), limits)
        except (Unreadable, TooLarge):
            file.unlink()
            continue
        if file.suffix[1:].lower() not in PICTURE_EXTENSIONS:
            file.unlink()
    return tree


def _compare(peers: Peers, called: str, tree: Path, folder: Path, rounds: int) -> list[Row]:
    """All questions to one tree: what both do, ours, and those of the peers that answer it."""
    limits = read_limits()
    files = _files(tree)
    fresh = count()

    def whole(*asked: str) -> Callable[[], object]:
        return lambda: audit(Audit(tree, folder / f"out-{called}-{next(fresh)}", checks=asked, workers=0))

    def each(work: Callable[[Any, Any], object], section: str) -> Callable[[], None]:
        def works() -> None:
            for file in files:
                try:
                    with open(file, "rb") as opened:
                        picture = read_picture(opened, str(file), limits["picture"])
                except (Unreadable, TooLarge):
                    continue
                work(picture, limits[section])

        return works

    def exact() -> None:
        for file in files:
            digest(os.fsencode(file))

    place = str(tree)
    questions: dict[str, tuple[str, Callable[[], object], dict[str, tuple[str, ...]]]] = {
        "whole pass: blur, size, information; exact and near duplicates": (
            "audit --checks quality",
            whole("quality"),
            {"cleanvision, 5 issues": ("cleanvision", place, *POOR, *TWICE)},
        ),
        "whole pass: exact and near duplicates": (
            "audit without checks",
            whole(),
            {
                "cleanvision, 2 issues": ("cleanvision", place, *TWICE),
                "imagededup PHash": ("both", "PHash", place),
                "imagededup DHash": ("both", "DHash", place),
            },
        ),
        "reading, blur and size": (
            "quality.check",
            each(checks.load("quality"), "quality"),
            {
                "cleanvision blurry, odd_size": ("cleanvision", place, "blurry", "odd_size"),
                "cleanvision blurry": ("cleanvision", place, "blurry"),
                "cleanvision low_information": ("cleanvision", place, "low_information"),
            },
        ),
        "reading and hashing": (
            "print_of",
            each(print_of, "duplicates"),
            {
                "PHash.encode_images": ("encode", "PHash", place),
                "DHash.encode_images": ("encode", "DHash", place),
            },
        ),
        "exact duplicates": (
            "SHA-256 of the files",
            exact,
            {"cleanvision exact_duplicates": ("cleanvision", place, "exact_duplicates")},
        ),
    }
    rows = []
    for question, (ours, work, asked) in questions.items():
        measures = {ours: seconds(work), **{name: peers.measure(*request) for name, request in asked.items()}}
        taken = interleave(measures, rounds, warm=False)
        rows += [row(taken, f"{called}: {question}", ours, name) for name in asked]
    return rows


def _search(peers: Peers, folder: Path, rounds: int) -> list[Row]:
    """Near pairs among hashes alone, where the number of pairs, not of pictures, is what costs."""
    draw = np.random.default_rng(2)
    hashes = draw.integers(0, 1 << 63, HASHES, np.uint64)
    hashes[::10] = hashes[1::10] ^ np.uint64(0b1011)
    codes = folder / "codes.json"
    codes.write_text(json.dumps({f"{at:06}": f"{int(value):016x}" for at, value in enumerate(hashes)}))
    measures = {
        "close_pairs": seconds(lambda: list(close_pairs(hashes, 6))),
        "PHash.find_duplicates": peers.measure("search", "PHash", str(codes)),
    }
    taken = interleave(measures, rounds, warm=False)
    case = f"near pairs among {HASHES} hashes of 64 bits, a tenth planted"
    return [row(taken, case, *measures)]


def _alone(tree: Path, out: Path) -> dict[str, dict[str, float]]:
    """Files per second of each of our checks, of those files that it was put to (without a peer)."""
    audit(Audit(tree, out, checks=WITHOUT_TEXT, workers=0))
    summary = json.loads((out / "summary.json").read_text(encoding="utf-8"))
    spent: dict[str, float] = summary["pass"]["seconds_of_checks"]
    return {
        name: {"seconds": took, "files_per_second": summary["files"] / max(took, 1e-3)}
        for name, took in spent.items()
    }


def _files(tree: Path) -> list[Path]:
    return sorted(path for path in tree.rglob("*") if path.is_file())


def _page(rows: Sequence[Row], details: dict[str, Any]) -> str:
    versions = [f"{name} {version}" for name, version in details["versions"].items()]
    text = page("The audit beside cleanvision and imagededup", rows, {"Peers:": versions})
    text += "\n## Files per second\n\n" + "\n".join(_speeds(rows, details["files"])) + "\n"
    text += "\n## Our checks one by one\n\nIn one process, reading and hashing once for all of them; OCR is not among them.\n\n"
    lines = [
        [called, name, f"{one['seconds']:.1f} s", f"{one['files_per_second']:.0f}"]
        for called, found in details["alone"].items()
        for name, one in found.items()
    ]
    return text + "\n".join(table(("tree", "check", "time", "files per second"), lines)) + "\n"


def _speeds(rows: Iterable[Row], files: dict[str, int]) -> list[str]:
    lines = []
    for each in rows:
        called = each.case.partition(":")[0]
        if called in files:
            speeds = [
                files[called] / statistics.median(taken.value for taken in side)
                for side in (each.ours_taken, each.peer_taken)
            ]
            lines.append([each.case, each.ours, each.peer, *(f"{speed:.0f}" for speed in speeds),
                          f"{1 / statistics.median(each.ratios):.1f}"])  # fmt: skip
    return table(("case", "ours", "peer", "ours, files/s", "peer, files/s", "times as fast"), lines)
