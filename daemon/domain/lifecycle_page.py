"""docs/lifecycle.md, printed from the tables: `python -m daemon.domain.lifecycle_page > docs/lifecycle.md`."""

from __future__ import annotations

from collections.abc import Iterator

from daemon.domain.holds import HOLDS
from daemon.domain.lifecycle import EDGES, FACTS, MAIN_LINE, TERMINAL, JobState


def page() -> str:
    return "\n".join(_lines()) + "\n"


def _lines() -> Iterator[str]:
    yield "# Lifecycle of a job"
    yield ""
    yield "Generated from `daemon/domain/lifecycle.py` and `holds.py`; a test fails when this page is stale."
    yield ""
    yield "```mermaid"
    yield "stateDiagram-v2"
    yield "    [*] --> QUEUED"
    for edge in EDGES:
        if edge.source in MAIN_LINE and edge.target in MAIN_LINE and not edge.backward:
            yield f"    {edge.source} --> {edge.target}: {edge.trigger}"
    yield "    DESTROYED --> [*]"
    yield "```"
    yield ""
    yield "## States"
    yield ""
    yield "| state | the durable fact it names |"
    yield "|---|---|"
    for state in JobState:
        yield f"| {state}{' (terminal)' if state in TERMINAL else ''} | {FACTS[state]} |"
    yield ""
    yield "## Edges"
    yield ""
    yield "| from | trigger | to | only when |"
    yield "|---|---|---|---|"
    for edge in EDGES:
        mark = " (backward)" if edge.backward else ""
        yield f"| {edge.source} | {edge.trigger} | {edge.target}{mark} | {'; '.join(edge.guards) or '-'} |"
    yield ""
    yield "## Holds"
    yield ""
    yield "A job can be HELD in every state that is not terminal. A hold never destroys."
    yield ""
    yield "| reason | meaning | saved first | the machine | advice | commands |"
    yield "|---|---|---|---|---|---|"
    for reason, hold in HOLDS.items():
        commands = ", ".join(f"`{c.format(job='JOB')}`" for c in hold.commands)
        yield f"| {reason} | {hold.meaning} | {hold.rescue} | {hold.release} | {hold.advice} | {commands} |"


if __name__ == "__main__":
    print(page(), end="")
