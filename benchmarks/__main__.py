"""Measure, and write ``docs/benchmarks.md``."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FAMILIES = ("reader", "steady", "simulated", "memory", "scale")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "families", nargs="*", metavar="FAMILY", help=f"of {', '.join(FAMILIES)}; all by default"
    )
    parser.add_argument(
        "--work",
        type=Path,
        default=ROOT / "benchmarks" / ".work",
        help="folder for clips, models, runs and results",
    )
    args = parser.parse_args()
    if unknown := set(args.families) - set(FAMILIES):
        parser.error(f"no such family: {', '.join(sorted(unknown))}")
    # also for the processes that are started, which must find this package
    paths = [str(ROOT), str(ROOT / "workflow" / "scripts")]
    os.environ["PYTHONPATH"] = os.pathsep.join([*paths, os.environ.get("PYTHONPATH", "")])
    sys.path[:0] = paths

    from benchmarks import report

    work = args.work.absolute()
    work.mkdir(parents=True, exist_ok=True)
    (work / ".gitignore").write_text("*\n", encoding="utf-8")
    for name in args.families or FAMILIES:
        print(f"{name} ...", file=sys.stderr, flush=True)
        section = importlib.import_module(f"benchmarks.{name}").run(work)
        section.save(work / "results" / f"{name}.json")
        for figure in section.figures:
            print(f"  {figure.name}: {figure.measured} (bar: {figure.bar or 'none'})", flush=True)
    saved = [work / "results" / f"{name}.json" for name in FAMILIES]
    page = report.page(report.Section.load(path) for path in saved if path.exists())
    (ROOT / "docs" / "benchmarks.md").write_text(page, encoding="utf-8")
    print(f"written: {ROOT / 'docs' / 'benchmarks.md'}", file=sys.stderr)


if __name__ == "__main__":
    main()
