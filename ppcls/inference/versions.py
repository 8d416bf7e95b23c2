"""Versions of the installed packages that take part in exporting and running."""

from itertools import chain

import ppcls
from ppcls.inference.engines import ENGINES
from ppcls.inference.formats import FORMATS


def versions() -> dict[str, str]:
    """Return the version of each installed package, and of ppcls itself."""
    from importlib.metadata import PackageNotFoundError, version  # takes 20 ms

    found = {"ppcls": ppcls.__version__}
    packages = [kind.packages for kind in FORMATS.values()] + [kind.packages for kind in ENGINES.values()]
    for package in chain.from_iterable(packages):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
