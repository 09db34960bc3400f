"""Benchmarks: ratios measured inside one run, with the bars that issues set. `python -m longtake.bench` runs them all."""
