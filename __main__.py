"""`python -m longtake`: the command line, where there is no `longtake` script (a wheel shipped with `ray job submit`)."""

from .jobs.cli.app import main

main()
