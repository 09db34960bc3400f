"""Ray, files and people: job configs, checks, gangs, the driver, manifests, the command line."""
