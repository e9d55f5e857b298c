"""An HTTP reply as the market gives it."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Reply:
    """An HTTP reply, kept back until it is known what becomes of it."""

    status: int
    body: bytes
    headers: list[tuple[bytes, bytes]] = field(default_factory=lambda: [(b"content-type", b"application/json")])

    @classmethod
    def of(cls, status: int, body: Any, content_type: str = "application/json", **headers: str) -> Reply:
        """A reply of `body`: text as it is, anything else as JSON."""
        text = body if isinstance(body, str) else json.dumps(body)
        extra = [(name.encode(), value.encode()) for name, value in headers.items()]
        return cls(status, text.encode(), [(b"content-type", content_type.encode()), *extra])
