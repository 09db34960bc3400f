"""Which versions of packages are at work."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version


def package_versions(packages: Iterable[str]) -> dict[str, str]:
    """Their versions by name. longtake itself may be shipped as plain files, without an installation that knows its version."""
    found = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "unpacked" if package == "longtake" else "missing"
    return found
