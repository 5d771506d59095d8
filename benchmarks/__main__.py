"""Measure, and write ``docs/benchmarks.md``."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FAMILIES = ("reader", "steady", "simulated", "start", "memory", "scale", "remote")
ON_A_CARD = "gpu"
"""Only measured when it is named; what it measured last is kept in the repository."""
MEASURED_ON_A_CARD = ROOT / "benchmarks" / "gpu" / "measured.json"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "families",
        nargs="*",
        metavar="FAMILY",
        help=f"of {', '.join(FAMILIES)}; all of these by default, and {ON_A_CARD}",
    )
    parser.add_argument(
        "--gpu-results", type=Path, metavar="FILE", help="results.json of a card measured elsewhere"
    )
    parser.add_argument(
        "--work",
        type=Path,
        default=ROOT / "benchmarks" / ".work",
        help="folder for clips, models, runs and results",
    )
    args = parser.parse_args()
    if unknown := set(args.families) - {*FAMILIES, ON_A_CARD}:
        parser.error(f"no such family: {', '.join(sorted(unknown))}")
    # also for the processes that are started, which must find this package
    paths = [str(ROOT), str(ROOT / "workflow" / "scripts")]
    os.environ["PYTHONPATH"] = os.pathsep.join([*paths, os.environ.get("PYTHONPATH", "")])
    sys.path[:0] = paths

    from benchmarks import report

    work = args.work.absolute()
    work.mkdir(parents=True, exist_ok=True)
    (work / ".gitignore").write_text("*\n", encoding="utf-8")
    measured = []
    if args.gpu_results:
        from benchmarks.gpu.section import of_file

        measured.append(of_file(args.gpu_results))
        measured[0].save(MEASURED_ON_A_CARD)
    for name in args.families or (() if args.gpu_results else FAMILIES):
        print(f"{name} ...", file=sys.stderr, flush=True)
        section = importlib.import_module(f"benchmarks.{name}").run(work)
        section.save(MEASURED_ON_A_CARD if name == ON_A_CARD else work / "results" / f"{name}.json")
        for figure in section.figures:
            print(f"  {figure.name}: {figure.measured} (bar: {figure.bar or 'none'})", flush=True)
        measured.append(section)
    target = ROOT / "docs" / "benchmarks.md"
    text = target.read_text(encoding="utf-8")
    for section in measured:
        text = report.put(text, section)
    target.write_text(text, encoding="utf-8")
    print(f"written: {target}", file=sys.stderr)


if __name__ == "__main__":
    main()
