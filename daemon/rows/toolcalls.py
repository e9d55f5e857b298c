"""Tools and calls of tools in the form that chat templates render: objects, not the JSON text some files hold.

A tool becomes {"type": "function", "function": {"name", ...}}, a call {"type": "function", "function": {"name",
"arguments"}} with its arguments as an object. Raises ValueError with what was expected.
"""

from __future__ import annotations

import json
from typing import Any


def tools(value: Any) -> list[dict[str, Any]]:
    """A row's `tools` column: a list of function descriptions, or such a list as JSON text."""
    made = []
    for i, tool in enumerate(_listed(value, "tools")):
        function = tool.get("function", tool) if isinstance(tool, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise ValueError(f"tools[{i}] describes no function (expected an object with a name)")
        made.append({"type": "function", "function": function})
    return made


def calls(value: Any, turn: str) -> list[dict[str, Any]]:
    """The `tool_calls` of `turn`: one or several objects, or their JSON text."""
    made = []
    for i, call in enumerate(_listed(value, f"{turn}.tool_calls")):
        name = f"{turn}.tool_calls[{i}]"
        function = call.get("function", call) if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise ValueError(f"{name} names no function")
        arguments = _parsed(function.get("arguments") or {}, f"{name}.arguments")
        if not isinstance(arguments, dict):
            raise ValueError(f"{name}.arguments is not an object")
        made.append(
            {key: call[key] for key in ("id",) if isinstance(call.get(key), str)}
            | {"type": "function", "function": {"name": function["name"], "arguments": arguments}}
        )
    return made


def _listed(value: Any, name: str) -> list[Any]:
    found = _parsed(value, name)
    return found if isinstance(found, list) else [found]


def _parsed(value: Any, name: str) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{name} is not JSON ({error})") from error
