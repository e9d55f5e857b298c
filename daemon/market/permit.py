"""The only argument that `Market.destroy` takes.

A permit stands for one of three stored facts (see PermitKind) and for one destroy operation whose INTENT is committed.
`control/permits.py` holds the one function that builds it; a database trigger checks the same facts on the operation.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class PermitKind(StrEnum):
    RECEIPT = "receipt"  # the job's current artifact set is verified here and was re-checked just now
    TOKEN = "token"  # noqa: S105 - not a secret: the person typed the instance id
    UNUSED = "unused"  # no stage was ever started on it


@dataclass(frozen=True)
class DestroyPermit:
    instance_id: int
    kind: PermitKind
    reference: int | None  # receipt id, token id, None for unused
    operation_id: int
