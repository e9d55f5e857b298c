"""The person's own board that a job may name in `report_to`: what it needs on the machine, and the key to it."""

from __future__ import annotations

from collections.abc import Mapping

from daemon.artifacts.workstation import Objection
from daemon.domain.spec import JobSpec
from remote_payload.contract import REPORTERS


def pins(spec: JobSpec) -> list[str]:
    """The package that the machine needs for it."""
    return [REPORTERS[spec.report_to].requirement] if spec.report_to else []


def key(spec: JobSpec, environment: Mapping[str, str]) -> dict[str, str]:
    """The key out of our own environment, for one start on the machine; it is stored nowhere."""
    name = REPORTERS[spec.report_to].key if spec.report_to else None
    return {name: environment[name]} if name is not None and name in environment else {}


def objections(spec: JobSpec, environment: Mapping[str, str]) -> list[Objection]:
    """That the key is missing, said before anything is rented."""
    name = REPORTERS[spec.report_to].key if spec.report_to else None
    if name is None or name in environment:
        return []
    return [Objection(f"report_to: {spec.report_to} needs {name} in the daemon's environment", f"set {name}")]
