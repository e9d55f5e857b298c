"""The market's refusals in its own words: status, body and headers of each, for the fault `refusal`.

The market is not consistent about its statuses, so some refusals are here more than once, as they have been seen.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from .reply import Reply

DAY_S = 86_400


def _said(status: int, error: str, msg: str, **more: Any) -> Callable[[], Reply]:
    return lambda: Reply.of(status, {"success": False, "error": error, "msg": msg, **more})


def _text(status: int, text: str, **headers: str) -> Callable[[], Reply]:
    return lambda: Reply.of(status, text, "text/plain", **headers)


def _quota_used_up() -> Reply:
    """The search quota of the day, which ends at midnight UTC."""
    midnight = (int(time.time()) // DAY_S + 1) * DAY_S
    body = {"success": False, "error": "search_quota_exceeded", "msg": "Daily search quota exceeded."}
    return Reply.of(429, body, **{"x-ratelimit-reset": str(midnight)})


def bad_key(status: int = 404) -> Reply:
    return _said(status, "auth_error", "Invalid user key")()


NO_LOGIN = _said(403, "auth_error", "This action requires login.")
NO_PERMISSION = _said(403, "auth_error", "Key lacks permission.")

REFUSALS: dict[str, Callable[[], Reply]] = {
    # the key
    "session_expired": _said(404, "auth_error", "Session expired. Please log in again."),
    "two_factor": _said(401, "auth_error", "Two Factor Authentication required."),
    "no_permission": NO_PERMISSION,
    "address_blocked": lambda: Reply.of(403, "<html><body>403 Forbidden</body></html>", "text/html"),
    # the pace
    "too_frequent": _text(429, "API requests too frequent"),
    "too_frequent_json": lambda: Reply.of(429, {"detail": "API requests too frequent", "retry_after": 1}),
    "retry_after": _text(429, "API requests too frequent", **{"retry-after": "1"}),
    "search_quota": _quota_used_up,
    # renting
    "offer_taken": _said(404, "invalid_args", "error 404/3603: no_such_ask Instance type is not available."),
    "offer_taken_400": _said(400, "no_such_ask", "error 400/3603: Instance type is no longer available."),
    "no_longer_available": _said(410, "no_such_ask", "error 410/3907: Instance type is no longer available."),
    "not_allowed": _said(403, "invalid_args", "error 403/3586: not allowed while renting to others."),
    "insufficient_credit": _said(400, "insufficient_credit", "Insufficient credit to rent this instance."),
    "insufficient_credit_411": _said(411, "insufficient_credit", "Insufficient credit"),
    "missing_billing": _said(400, "missing_billing", "Add a payment method first."),
    "spend_rate_limit": _said(400, "spend_rate_limit", "Spend rate limit reached for a new account."),
    "no_ssh_key_for_vm": _said(400, "no_ssh_key_for_vm", "error 400/3467: add an SSH key first."),
    # the rest
    "team_key": _said(400, "team_ssh_keys_not_supported", "SSH keys of a team cannot be changed by its key."),
    "no_such_instance": _said(404, "no_such_instance", "Instance not found."),
    "deprecated": _said(410, "deprecated_endpoint", "This endpoint is deprecated."),
    "unsuccessful": lambda: Reply.of(200, {"success": False, "error": "invalid_args", "msg": "Something went wrong."}),
    "unsuccessful_mute": lambda: Reply.of(200, {"success": False}),
    "moved": _text(308, "", location="https://console.invalid/"),
}
