"""One line of `jobctl doctor`, by how it came out. A `fix` is a command, or what to do in words."""

from __future__ import annotations

from daemon.api.messages import Check


def passed(name: str, detail: str) -> Check:
    return Check(name=name, status="PASS", detail=detail, fix="")


def warned(name: str, detail: str, fix: str) -> Check:
    return Check(name=name, status="WARN", detail=detail, fix=fix)


def failed(name: str, detail: str, fix: str) -> Check:
    return Check(name=name, status="FAIL", detail=detail, fix=fix)


def skipped(name: str, detail: str) -> Check:
    return Check(name=name, status="SKIP", detail=detail, fix="")
