"""`jobctl metrics`: the last steps as a table, or one figure as a curve."""

from __future__ import annotations

from collections.abc import Sequence

from daemon.cli.terminal import Column, Look, table
from daemon.store.shapes import Metric

PLOT_ROWS = 8
EIGHTHS = " ▁▂▃▄▅▆▇█"


def screen(steps: Sequence[Metric], look: Look) -> str:
    if not steps:
        return "no step has been reported yet"
    return "\n".join(
        table(
            [
                Column("ATTEMPT", [str(step["attempt"]) for step in steps], right=True, drop=1),
                Column("STAGE", [step["stage"] for step in steps]),
                Column("STEP", [f"{step['step']}/{step['total'] or '?'}" for step in steps], right=True),
                Column("LOSS", [_figure(step["loss"], ".4f") for step in steps], right=True),
                Column("LR", [_figure(step["lr"], ".2e") for step in steps], right=True),
                Column("TOKENS", [_figure(step["tokens"], ",") for step in steps], right=True),
                Column("TOK/S", [_figure(step["tok_s"], ",.0f") for step in steps], right=True),
            ],
            look,
        )
    )


def plot(steps: Sequence[Metric], key: str, look: Look) -> str:
    """One curve a stage of the last attempt, columns of eighths of a character."""
    last = max((step["attempt"] for step in steps), default=0)
    blocks = []
    for stage in dict.fromkeys(step["stage"] for step in steps):
        of_stage = [step for step in steps if step["stage"] == stage and step["attempt"] == last]
        values = [step["body"].get(key) for step in of_stage]
        numbers = [float(value) for value in values if isinstance(value, int | float)]
        if numbers:
            blocks.append(_curve(f"{stage} {key}", numbers, look))
    known = sorted({name for step in steps for name, value in step["body"].items() if isinstance(value, float)})
    return "\n\n".join(blocks) or f"no step reports {key!r}; there are: {', '.join(known) or 'none'}"


def _curve(title: str, values: Sequence[float], look: Look) -> str:
    width = max(10, min(len(values), look.width - 12))
    points = (
        [values[i * (len(values) - 1) // max(1, width - 1)] for i in range(width)] if len(values) > width else values
    )
    low, high = min(points), max(points)
    scale = (PLOT_ROWS * 8 - 1) / (high - low) if high > low else 0
    heights = [1 + round((point - low) * scale) for point in points]
    lines = [f"{title}   first {values[0]:.4g}   last {values[-1]:.4g}   {len(values)} steps"]
    for row in reversed(range(PLOT_ROWS)):
        mark = f"{high:>10.4g}" if row == PLOT_ROWS - 1 else f"{low:>10.4g}" if row == 0 else " " * 10
        cells = "".join(_cell(height - row * 8, look) for height in heights)
        lines.append(f"{mark} |{cells}".rstrip())
    return "\n".join(lines)


def _cell(eighths: int, look: Look) -> str:
    filled = min(8, max(0, eighths))
    return EIGHTHS[filled] if look.blocks else ("#" if filled >= 4 else " ")


def _figure(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
