"""`make bench`: every figure in one run, as a table and, with BENCH_JSON=FILE, as JSON."""

import json
import os
import sys
from pathlib import Path

from benchmarks import engine, parse

_STAGES = (
    ("page to records", parse.run),
    ("rules", engine.run),
)


def main() -> None:
    """Run each stage, print its figures as they come, and write them all at the end."""
    figures: dict[str, float] = {}
    for title, run in _STAGES:
        print(f"\n{title}", flush=True)
        measured = run()
        figures |= measured
        for name, value in measured.items():
            print(f"  {name:40} {value:14,.2f}", flush=True)
    if target := os.environ.get("BENCH_JSON"):
        Path(target).write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
        print(f"written to {target}", file=sys.stderr)


if __name__ == "__main__":
    main()
