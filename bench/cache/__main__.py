"""Caches against each other and against fewer steps, in bench/results/cache.json and cache.png; described on docs/benchmark.md."""

from __future__ import annotations

import argparse
from pathlib import Path

from .run import look, main, redraw
from .stages import STAGES

parser = argparse.ArgumentParser(prog="python -m longtake.bench.cache", description=__doc__)
parser.add_argument("--stage", default="", metavar="PIECE", help=f"measure one piece into its journal, {STAGES[0].name} for example")
parser.add_argument("--dirty", action="store_true", help="measure although the checkout has changes that are not committed")
parser.add_argument("--draw", action="store_true", help="only draw the picture again from the results")
parser.add_argument("--quick", action="store_true", help="only print points of one tuning clip on --stage; writes no results")
parser.add_argument("--only", default="", help="with --quick: contenders whose name contains this")
parser.add_argument("--every", type=int, default=1, help="with --quick: one setting of so many")
parser.add_argument("--picture", type=Path, help="with --quick: where to draw the points")
options = parser.parse_args()
try:
    if options.draw:
        redraw()
    elif options.quick:
        look(options.stage or STAGES[0].name, options.only, options.every, options.picture)
    else:
        main(options.stage, dirty=options.dirty)
except ValueError as error:
    parser.error(str(error))
