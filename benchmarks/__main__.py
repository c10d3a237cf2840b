"""`python -m benchmarks [NAME ...]`: run the named benchmarks (all by default) and write their figures.

One thread, unless OMP_NUM_THREADS says otherwise: on a machine that others use too, a second thread mostly waits
for a core it does not get, and what is measured is that waiting.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import time
from pathlib import Path

NAMES = (
    "loop",
    "counts",
    "segmentation_metrics",
    "bootstrap",
    "lovasz",
    "cli",
    "ledger",
    "tiles",
    "scenes",
    "networks",
    "official",
    "official_segmentation",
    "detection",
    "attention",
    "audit",
    "audit_speed",
    "audit_scale",
    "ssm_cpu",
    "ssm_gpu",
)


def main() -> None:
    """Run benchmarks one after the other; one that cannot run says why and is left out."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Ours beside a named peer.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(NAMES)} (default: all)")
    parser.add_argument("--rounds", type=int, default=7, help="measurements of each (default: %(default)s)")
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).parent / "results", help="where figures go (%(default)s)"
    )
    chosen = parser.parse_args()
    if unknown := [name for name in chosen.names if name not in NAMES]:
        parser.error(f"there is no benchmark {', '.join(unknown)}; there are {', '.join(NAMES)}")
    if chosen.rounds < 1:
        parser.error("--rounds must be 1 or more")

    os.environ.setdefault(
        "OMP_NUM_THREADS", "1"
    )  # read by torch when it is imported, and by our child processes
    from loguru import logger

    from benchmarks.timing import Findings, Unavailable, write_results, write_table

    logger.disable("anban")
    for name in chosen.names or NAMES:
        module = importlib.import_module(f"benchmarks.{name}")
        begun = time.perf_counter()
        try:
            found = module.run(chosen.rounds)
        except Unavailable as why:
            print(f"{name}: left out, {why}", file=sys.stderr)
            continue
        seconds = time.perf_counter() - begun
        write_results(chosen.out, name, module.__doc__ or "", found, seconds)
        print(f"{name}: {seconds:.0f} s", file=sys.stderr)
        for row in found.rows if isinstance(found, Findings) else found:
            print(f"  {row}")
    write_table(chosen.out, NAMES)


if __name__ == "__main__":
    main()
