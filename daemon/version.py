"""Which homeport this is."""

from __future__ import annotations


def installed() -> str:
    """The version of the installed distribution, or that this is a source tree that was never installed."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("homeport")
    except PackageNotFoundError:
        return "(source tree)"
