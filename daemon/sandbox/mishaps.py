"""What happens to hosts, accounts and the market itself without anybody asking: the faults of those moments."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from .boxes import Boxes
from .faults import Moment
from .instances import CREATED, EXITED, RUNNING, Instance
from .life import Life
from .orders import Order
from .provider import Provider


@dataclass(frozen=True)
class Mishaps:
    """Carries out the orders of what strikes without a request. `shut` closes the market for so many seconds."""

    provider: Provider
    life: Life
    boxes: Boxes
    shut: Callable[[float], Awaitable[None]]

    async def strike(self, order: Order, concerned: int | None = None) -> None:
        """Let a fault befall the instance it names, else the one `concerned`, else every living one."""
        if order.kind.moment is Moment.MARKET:
            await self._befall_market(order.fault, order.params)
            return
        wanted = concerned if order.params["instance"] is None else order.params["instance"]
        for instance in self.provider.ledger.existing():
            if instance.destroyed_at is not None or wanted not in (None, instance.id):
                continue
            if order.kind.moment is Moment.BOX:
                self.boxes.order(instance.id, order.id, order.fault, order.params)
            else:
                await self._befall(instance, order.fault, order.params)

    async def _befall_market(self, fault: str, params: dict[str, Any]) -> None:
        match fault:
            case "unreachable":
                await self.shut(params["seconds"])
            case "offers_relisted":
                self.provider.relist()
            case "credit":
                self.provider.ledger.set_credit(params["left"], time.time())
                self.life.credit_buffer_s = params["buffer_s"]

    async def _befall(self, instance: Instance, fault: str, params: dict[str, Any]) -> None:
        change = self.provider.ledger.change
        now = time.time()
        until = now + params.get("seconds", 0.0)
        match fault:
            case "vanish":
                change(instance.id, listed_from=until)
            case "console_destroy":
                self.provider.destroy(instance.id)
            case "stuck_loading":
                change(instance.id, loading_until=until)
            case "docker_error":
                change(instance.id, status=CREATED, status_msg=params["status_msg"], allocated=False, stalled=True,
                       ports=None, changed_at=now)  # fmt: skip
            case "exits":
                change(instance.id, status=EXITED, allocated=False, stalled=True, ports=None, changed_at=now)
                await self.life.switch_off(instance.id)
            case "reboot":
                if instance.status == RUNNING:
                    self.provider.restart(instance.id, how="rebooting")
            case "offline":
                change(instance.id, offline_until=until)
            case "status":
                change(instance.id, told=params["status"], told_until=until)
            case "outbid":
                change(instance.id, outbid_until=until)
            case "end_date":
                change(instance.id, end_date=until, grace_s=params["grace_s"])
            case "keys_wiped":
                change(instance.id, keys=())
            case "host_key_changes":
                self.boxes.forget_host_key(instance.id)
                await self.boxes.silence(instance.id)
            case "endpoint_moves":
                self.life.move_endpoint(instance, params["address"])
                await self.boxes.silence(instance.id)
            case "ssh_refused":
                self.life.ssh_refuses(instance, params["seconds"])
