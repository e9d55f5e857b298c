"""HTTP clients that use the proxy and the certificates which the environment names."""

from __future__ import annotations

import os
from typing import Any

import httpx

from daemon.errors import HomeportError


def client(**options: Any) -> httpx.AsyncClient:
    """httpx's own, with its options. Raises HomeportError naming the variable that is wrong."""
    try:
        return httpx.AsyncClient(**options)
    except OSError as error:  # of a file with certificates: its name is not in the error
        named = f"SSL_CERT_FILE={os.environ.get('SSL_CERT_FILE', '')}"
        raise HomeportError(f"{named}: {error.strerror or error}", hint="unset SSL_CERT_FILE") from error
    except (ImportError, ValueError, httpx.InvalidURL) as error:  # an unknown kind of proxy, or SOCKS without socksio
        raise HomeportError(f"the proxy of the environment: {error}", hint="env | grep -i _proxy") from error
