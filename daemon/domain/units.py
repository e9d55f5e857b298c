"""Money, time, sizes and speeds as people write them, read into our units and shown again.

Every reader takes what YAML made of the text (a string or a number) and raises ValueError with what it expected.
"""

from __future__ import annotations

import math
import re
from decimal import Decimal, InvalidOperation
from typing import Any

from daemon.domain import money

SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
GB = {"MB": 0.001, "GB": 1.0, "TB": 1000.0, "MIB": 2**20 / 1e9, "GIB": 2**30 / 1e9, "TIB": 2**40 / 1e9}
MBIT = {"K": 0.001, "M": 1.0, "G": 1000.0}


def dollars(value: Any) -> int:
    """'8.00', '$8' or 8 as micro-dollars."""
    text = str(value).strip().removeprefix("$").strip()
    try:
        amount = Decimal(text) if not isinstance(value, bool) else Decimal("NaN")
    except InvalidOperation:  # refused below, with everything else that is no amount
        amount = Decimal("NaN")
    if not amount.is_finite() or amount <= 0:
        raise ValueError("an amount of dollars above zero, such as $8.00")
    return money.micros(amount)


def dollars_per_hour(value: Any) -> int:
    """'0.60/h', '$0.60/h' or 0.6 as micro-dollars per hour."""
    try:
        return dollars(str(value).strip().removesuffix("/h") if isinstance(value, str) else value)
    except ValueError as error:
        raise ValueError("dollars per hour above zero, such as $0.60/h") from error


def duration(value: Any) -> int:
    """'8h', '90m' or '1h30m' as whole seconds. A number without a unit is refused: nobody knows if it means hours."""
    if (rounded := round(seconds(value))) <= 0:
        raise ValueError("a time above zero")
    return rounded


def seconds(value: Any) -> float:
    """As `duration`, where fractions count: '4.4s'."""
    parts = re.findall(r"(\d+(?:\.\d+)?)\s*([smhd])", value) if isinstance(value, str) else []
    if not parts or re.sub(r"\s", "", value) != "".join(number + unit for number, unit in parts):
        raise ValueError("a time with its unit, such as 90m, 8h or 1d12h")
    return sum(float(number) * SECONDS[unit] for number, unit in parts)


def gigabytes(value: Any) -> int:
    """'24GB', '24GB+', '0.5TB' or 24 as whole GB (1e9 bytes), rounded up."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([A-Z]+)?\s*\+?", str(value).strip().upper())
    if isinstance(value, bool) or not match or (match[2] or "GB") not in GB or not float(match[1]):
        raise ValueError("a size such as 24GB")
    return math.ceil(round(float(match[1]) * GB[match[2] or "GB"], 6))


def megabits(value: Any) -> int:
    """'50Mbit' or '1Gbit/s' as Mb/s. A bare number is refused: bits and bytes are too easily confused."""
    match = (
        re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMG])BIT(?:/S)?", value.strip().upper()) if isinstance(value, str) else None
    )
    speed = float(match[1]) * MBIT[match[2]] if match else 0
    if speed < 1:
        raise ValueError("a speed of at least 1Mbit, such as 50Mbit or 1Gbit")
    return round(speed)


def show_duration(seconds: float) -> str:
    """Two units at most: '45s', '12m', '1h35m', '3d4h'."""
    left = round(seconds)
    if left < 60:
        return f"{left}s"
    minutes = round(left / 60)
    if minutes < 60:
        return f"{minutes}m"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours}h{minutes:02d}m" if minutes else f"{hours}h"
    days, hours = divmod(hours, 24)
    return f"{days}d{hours}h" if hours else f"{days}d"


def show_bytes(count: float) -> str:
    """Decimal units: '8.5 GB', '264 MB', '12 kB'."""
    for size, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if count >= size:
            number = count / size
            return f"{number:.1f} {unit}" if number < 100 and unit == "GB" else f"{number:.0f} {unit}"
    return f"{count:.0f} bytes"
