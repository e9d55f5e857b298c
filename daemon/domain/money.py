"""Money and time as the database keeps them: integer micro-dollars, integer UTC milliseconds."""

from __future__ import annotations

from decimal import ROUND_HALF_UP, Decimal

MICRO = 1_000_000
HOUR_MS = 3_600_000
STORAGE_MONTH_H = 720  # the market's month of storage, in hours


def micros(dollars: float | int | str | Decimal) -> int:
    """Dollars as micro-dollars, rounded half up."""
    return int((Decimal(str(dollars)) * MICRO).to_integral_value(ROUND_HALF_UP))


def decimal_string(amount: int) -> str:
    """Micro-dollars for the wire: '1.060000' without trailing noise below a cent, at least two places."""
    text = f"{Decimal(amount) / MICRO:.6f}".rstrip("0")
    whole, _, part = text.partition(".")
    return f"{whole}.{part.ljust(2, '0')}"


def show(amount: int) -> str:
    """Micro-dollars for a person: '$1.06'; fractions of a cent only below one cent."""
    dollars = Decimal(amount) / MICRO
    if amount and abs(amount) < MICRO // 100:
        return f"${dollars.quantize(Decimal('0.0001'), ROUND_HALF_UP)}"
    return f"${dollars.quantize(Decimal('0.01'), ROUND_HALF_UP)}"


def accrued(rate_per_hour: int, elapsed_ms: int) -> int:
    """Cost of `elapsed_ms` at `rate_per_hour`, rounded up: recorded cost is never below the market's."""
    return -(-rate_per_hour * max(0, elapsed_ms) // HOUR_MS)
