"""`python -m longtake.bench [NAME ...]` runs benchmarks; `--bars` prints the committed bars that do not hold."""

from __future__ import annotations

import argparse
import sys
from importlib import import_module

from .results import read_bars

_ALL = ("cache", "demo", "long", "parallel")
_KNOWN = (*_ALL, "first_call")  # which demo runs as well
_MODULES = {"cache": "cache.run", "long": "long.run"}  # where it is not the benchmark's name


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"one of {', '.join(_KNOWN)}; all if left out")
    parser.add_argument("--bars", action="store_true", help="only print the bars of committed results that do not hold")
    options = parser.parse_args()
    if options.bars:
        failing = [(name, key, bar) for name, bars in read_bars().items() for key, bar in bars.items() if not bar.holds]
        for name, key, bar in failing:
            print(f"{name}.{key}: {bar.value:g} {bar.unit}, {'at least' if bar.at_least else 'at most'} {bar.bar:g}")
        sys.exit(1 if failing else 0)
    for name in options.names or _ALL:
        if name not in _KNOWN:
            parser.error(f"there is no benchmark '{name}'; known: {', '.join(_KNOWN)}")
        try:
            benchmark = import_module(f"longtake.bench.{_MODULES.get(name, name)}")
        except ModuleNotFoundError as error:
            parser.error(f"benchmark '{name}' needs the package {error.name}; install longtake with its extra: pip install -e '.[bench]'")
        try:
            benchmark.main()
        except ValueError as error:
            parser.error(str(error))


if __name__ == "__main__":
    main()
