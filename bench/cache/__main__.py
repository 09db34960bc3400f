"""`python -m longtake.bench.cache`: the benchmark of caches; `--quick` prints points of one clip and writes nothing."""

from __future__ import annotations

import argparse

from .contenders.contender import STEPS
from .measure import look, main

parser = argparse.ArgumentParser(prog="python -m longtake.bench.cache", description=__doc__)
parser.add_argument("--quick", action="store_true", help="only print points of one clip; writes no results")
parser.add_argument("--only", default="", help="with --quick: contenders whose name contains this")
parser.add_argument("--steps", type=int, choices=STEPS, default=STEPS[0], help="with --quick: of a film")
parser.add_argument("--every", type=int, default=1, help="with --quick: one setting of so many")
options = parser.parse_args()
if options.quick:
    look(options.only, options.steps, options.every)
else:
    main()
