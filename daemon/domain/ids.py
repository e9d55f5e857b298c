"""Identifiers: short enough to type, unlikely enough not to collide, and the label that makes an instance ours."""

from __future__ import annotations

import secrets

ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"  # Crockford base32: no i, l, o, u
LETTERS = ALPHABET[10:]
LABEL_PREFIX = "hp"
LABEL_MAX = 60  # characters that are known to survive the market's round trip


def job_id() -> str:
    """Six characters, a letter first, so that it is never taken for a number."""
    return secrets.choice(LETTERS) + "".join(secrets.choice(ALPHABET) for _ in range(5))


def nonce() -> str:
    """Ten characters: 50 bits."""
    return "".join(secrets.choice(ALPHABET) for _ in range(10))


def is_job_id(text: str) -> bool:
    """Whether `job_id` can have made it: a label may have been edited, and ids name folders here."""
    return len(text) == 6 and text[0] in LETTERS and set(text) <= set(ALPHABET)


def is_nonce(text: str) -> bool:
    return len(text) == 10 and set(text) <= set(ALPHABET)


def label(install: str, job: str, fresh: str) -> str:
    """hp-<install>-<job>-<nonce>: written to the database before the market sees it."""
    text = f"{LABEL_PREFIX}-{install}-{job}-{fresh}"
    if len(text) > LABEL_MAX:
        raise ValueError(f"label {text!r} is longer than {LABEL_MAX} characters")
    return text


def label_install(text: str | None) -> str | None:
    """The install id inside a label of this program, None for anybody else's."""
    return _parts(text)[0]


def label_job(text: str | None) -> str | None:
    """The job id inside a label of this program, None for anybody else's."""
    return _parts(text)[1]


def _parts(text: str | None) -> tuple[str, str] | tuple[None, None]:
    parts = (text or "").split("-")
    return (parts[1], parts[2]) if len(parts) == 4 and parts[0] == LABEL_PREFIX else (None, None)
