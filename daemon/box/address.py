"""Where a box answers and how it proves that it is ours."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class BoxAddress:
    """One instance as SSH sees it.

    `root` and `python` may be relative to the login directory until `Box.prove` has made them absolute.
    """

    instance_id: int
    endpoints: tuple[tuple[str, int], ...]  # (host, port), tried in this order: direct first, the market's proxy second
    host_key: str | None  # OpenSSH public key line; None until the box has proven itself
    challenge: str = field(repr=False)  # secret that only the market's API gave the box
    root: str
    python: str
    user: str = "root"
