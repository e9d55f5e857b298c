"""What a listing can turn into, for the fault `listing`: a table of shapes, each made from the true page. Pure."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from .reply import Reply
from .words import REFUSALS, bad_key

Page = dict[str, Any]


def _rows(change: Callable[[dict[str, Any]], dict[str, Any]]) -> Callable[[Page], Reply]:
    return lambda page: Reply.of(200, {**page, "instances": [change(row) for row in page["instances"]]})


def _with(**fields: Any) -> Callable[[Page], Reply]:
    return lambda page: Reply.of(200, {**page, **fields})


def _cut_short(page: Page) -> Reply:
    whole = json.dumps(page)
    return Reply.of(200, whole[: len(whole) // 2])


SHAPES: dict[str, Callable[[Page], Reply]] = {
    "truncated": _cut_short,
    "no_body": lambda page: Reply.of(200, ""),
    "bare_list": lambda page: Reply.of(200, page["instances"]),
    "empty_array": lambda page: Reply.of(200, []),
    "empty": _with(instances=[], total_instances=0, instances_found=0, next_token=None),
    "null": _with(instances=None),
    "no_rows": lambda page: Reply.of(200, {name: value for name, value in page.items() if name != "instances"}),
    "unsuccessful": _with(success=False, instances=[]),
    "gone": lambda page: REFUSALS["deprecated"](),
    "no_such_key": lambda page: bad_key(),
    "one_row_missing": lambda page: Reply.of(200, {**page, "instances": page["instances"][1:]}),
    "bad_token": _with(next_token="bm8gc3VjaCByb3c="),  # noqa: S106 - the next page answers 400
    "no_next_page": _with(next_token=None),
    "ids_as_text": _rows(lambda row: {**row, "id": str(row["id"])}),
    "no_ids": _rows(lambda row: {**row, "id": None}),
    "label_null": _rows(lambda row: {**row, "label": None}),
    "unheard_of_status": _rows(lambda row: {**row, "actual_status": "defragmenting"}),
    "a_row_is_null": lambda page: Reply.of(200, {**page, "instances": [*page["instances"], None]}),
}
