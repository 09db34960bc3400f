"""What long takes cost, and whether they hold: `python -m longtake.bench long`, described on docs/benchmark-long.md."""
