"""Instances as the market shows them: rows, filters, pages. Pure but for the clock passed in."""

from __future__ import annotations

import base64
import binascii
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from .catalogue import OFFERS
from .instances import RUNNING, STOPPED, Instance
from .provider import Refusal
from .search import OPERATORS

MAX_PAGE, TINY_PAGE = 25, 5  # rows; a limit of zero or less is read as the latter
STORED = frozenset(
    {"id", "label", "actual_status", "intended_status", "gpu_name", "verification", "machine_id", "host_id"}
)


def row(instance: Instance, now: float) -> dict[str, Any]:
    """One full row. Text that comes from the host carries stray white space, as on the market."""
    offer = OFFERS[instance.offer_id]
    machine = offer.machine
    running = instance.status == "running"
    status = instance.shown_status(now)
    storage = instance.rates.disk_hour
    gpus = instance.gpu_hour(now)
    total = gpus + storage
    hourly = {"gpuCostPerHour": gpus, "diskHour": storage, "totalHour": total,
              "discountTotalHour": 0.0, "discountedTotalPerHour": total}  # fmt: skip
    direct, proxy = instance.ports or (None, None)
    maps_ports = running and direct is not None and "direc" in instance.runtype and machine.direct_ports > 0
    return {
        "id": instance.id,
        "label": instance.label,
        "machine_id": machine.id,
        "host_id": machine.host,
        "actual_status": status,
        "intended_status": instance.intended,
        "cur_state": RUNNING if instance.allocated else STOPPED,
        "next_state": instance.intended,
        "status_msg": instance.status_msg,
        "image_uuid": instance.image,
        "image_runtype": instance.runtype,
        "image_args": [],
        "extra_env": [[name, value] for name, value in instance.env.items()],
        "onstart": instance.onstart,
        "num_gpus": offer.gpus,
        "gpu_name": machine.gpu,
        "gpu_ram": machine.gpu_ram,
        "gpu_totalram": machine.gpu_ram * offer.gpus,
        "gpu_util": 0.0 if running else None,
        "gpu_temp": 35.0 if running else None,
        "cpu_name": "EPYC 9554",
        "cpu_cores": machine.gpus * 24,
        "cpu_cores_effective": float(offer.gpus * 24),
        "cpu_ram": machine.gpus * 180_000,
        "cpu_util": 0.0 if running else None,
        "mem_usage": None,
        "mem_limit": 180.0 * offer.gpus,
        "vmem_usage": None,
        "disk_space": instance.disk_gb,
        "disk_usage": -1,
        "disk_util": -1,
        "inet_up": machine.inet_mbps,
        "inet_down": machine.inet_mbps,
        "inet_up_cost": instance.rates.gb_out,
        "inet_down_cost": instance.rates.gb_in,
        "ssh_host": "127.0.0.1",
        "ssh_port": proxy - 1 if proxy and "jupyter" in instance.runtype else proxy,  # clients add it again
        "ssh_idx": "1",
        "machine_dir_ssh_port": -1,
        "public_ipaddr": f"{instance.address} ",
        "local_ipaddrs": "127.0.0.1\n",
        "ports": {"22/tcp": [{"HostIp": instance.address, "HostPort": str(direct)}]} if maps_ports else None,
        "direct_port_start": -1,
        "direct_port_end": -1,
        "direct_port_count": machine.direct_ports,
        "static_ip": True,
        "start_date": instance.created_at,
        "end_date": instance.end_date,
        "uptime_mins": (now - instance.changed_at) / 60 if running else None,
        "duration": instance.end_date - now,
        "dph_base": gpus,
        "dph_total": total,
        "storage_cost": machine.storage,
        "storage_total_cost": storage,
        "min_bid": offer.min_bid,
        "is_bid": instance.is_bid,
        "search": hourly,
        "instance": hourly,
        "jupyter_token": "",
        "template_id": None,
        "template_hash_id": None,
        "template_name": None,
        "verification": machine.verification,
        "geolocation": machine.geolocation,
        "reliability2": machine.reliability,
        "cuda_max_good": machine.cuda,
        "driver_version": "570.86.15",
        "volume_info": None,
        "webpage": None,
    }


def page(rows: Sequence[dict[str, Any]], query: dict[str, str]) -> dict[str, Any]:
    """One page of the v1 listing, by its query string. Raises Refusal for a bad token, column or operator."""
    filters = parameter(query, "select_filters", {})
    if unknown := filters.keys() - STORED:
        raise Refusal(400, "invalid_args", f"cannot filter by {', '.join(sorted(unknown))}")
    kept = [r for r in rows if _kept(r, filters)]
    for order in reversed(parameter(query, "order_by", [])):
        kept.sort(key=lambda r: (r.get(order["col"]) is not None, r.get(order["col"])), reverse=order["dir"] == "desc")
    limit = int(query.get("limit") or MAX_PAGE)
    limit = TINY_PAGE if limit <= 0 else min(limit, MAX_PAGE)
    start = _position(kept, query.get("after_token"))
    shown = kept[start : start + limit]
    more = start + limit < len(kept)
    columns = parameter(query, "select_cols", None)
    if columns and columns != ["*"]:
        shown_rows = [{column: r.get(column) for column in columns} for r in shown]
    else:
        shown_rows = list(shown)
    return {
        "success": True,
        "instances_found": len(kept),
        "total_instances": len(rows),
        "label_counts": dict(Counter(r["label"] or "" for r in rows)),
        "next_token": base64.b64encode(str(shown[-1]["id"]).encode()).decode() if more else None,
        "instances": shown_rows,
    }


def is_charged_within(charge: dict[str, Any], filters: dict[str, dict[str, Any]]) -> bool:
    """Whether any of a charge's time lies within the days asked for, which are unix seconds, and it is of the type."""
    days, types = filters.get("day", {}), filters.get("type", {})
    begun_late = charge["start"] > float(days.get("lte", "inf"))
    ended_early = charge["end"] < float(days.get("gte", "-inf"))
    return not (begun_late or ended_early) and _kept(charge, {"type": types})


def parameter(query: Mapping[str, str], name: str, default: Any) -> Any:
    """A parameter of a query string that is JSON. Raises Refusal."""
    try:
        return json.loads(query[name]) if query.get(name) else default
    except ValueError as error:
        raise Refusal(400, "invalid_args", f"{name} is not JSON") from error


def _kept(instance_row: dict[str, Any], filters: dict[str, dict[str, Any]]) -> bool:
    for column, conditions in filters.items():
        for op, operand in conditions.items():
            if op not in OPERATORS:
                raise Refusal(400, "invalid_args", f"unknown operator {op}")
            if not OPERATORS[op](instance_row[column], operand):
                return False
    return True


def _position(rows: Sequence[dict[str, Any]], token: str | None) -> int:
    """Where the page after `token` begins: behind the row it names."""
    if not token:
        return 0
    try:
        last = int(base64.b64decode(token.encode(), validate=True))
        return [r["id"] for r in rows].index(last) + 1
    except (ValueError, binascii.Error, TypeError) as error:
        raise Refusal(400, "invalid_args", "invalid after_token") from error
