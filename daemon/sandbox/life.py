"""Makes the world follow the ledger: statuses move with time, boxes start and stop, keys arrive, disks are deleted.

`tick` looks at every instance and does what is due; called again after any crash it goes on from the ledger alone.
"""

from __future__ import annotations

import time
from dataclasses import replace

from .boxes import Boxes, are_free, free_ports
from .instances import CREATED, EXITED, GONE_AFTER_S, LOADING, RECYCLING, RUNNING, STOPPED, Instance, moved, next_status
from .provider import Provider

TICK_S = 0.05
CREDIT_BUFFER_S = 86_400.0  # from no credit to the deletion of everything, before scaling


class Life:
    """Carries out what is due, instance by instance."""

    def __init__(self, provider: Provider, boxes: Boxes) -> None:
        self._provider = provider
        self._ledger = provider.ledger
        self._boxes = boxes
        self._refused_until: dict[int, float] = {}
        self.credit_buffer_s = CREDIT_BUFFER_S
        self._broke_since: float | None = None

    def recover(self) -> None:
        """After a start of the sandbox: running boxes that did not survive have to boot."""
        for instance in self._ledger.existing():
            if instance.status == RUNNING and not self._boxes.is_up(instance.id):
                self._ledger.change(instance.id, needs_boot=True)

    async def switch_everything_off(self) -> None:
        """At an orderly end of the sandbox: no process is left; the next start boots what was running."""
        for instance in self._ledger.existing():
            await self._boxes.switch_off(instance.id)

    async def switch_off(self, instance_id: int) -> None:
        """Stop the container, and bill the bytes that its sshd counted last."""
        await self._boxes.switch_off(instance_id)
        self._ledger.set_traffic(instance_id, self._boxes.traffic(instance_id))

    async def tick(self) -> None:
        now = time.time()
        self._keep_account(now)
        for instance in self._ledger.existing():
            if instance.destroyed_at is not None:
                await self._bury(instance, instance.destroyed_at, now)
            else:
                self._keep_contract(instance, now)
                await self._advance(self._ledger.get(instance.id) or instance, now)

    def _keep_account(self, now: float) -> None:
        """No credit: everything is stopped, disks bill on; after the buffer everything is deleted."""
        if self._ledger.credit(now) > 0:
            self._broke_since = None
            return
        self._broke_since = self._broke_since or now
        delete = now >= self._broke_since + self.credit_buffer_s / self._provider.time_scale
        for instance in self._ledger.existing():
            if instance.destroyed_at is None and delete:
                self._provider.destroy(instance.id)
            elif instance.destroyed_at is None and instance.intended == RUNNING:
                self._provider.set_state(instance.id, STOPPED)

    def _keep_contract(self, instance: Instance, now: float) -> None:
        """What the market does by itself: it ends contracts, and takes the GPUs from whoever is outbid."""
        ended = now >= instance.end_date
        outbid = self._provider.lost_its_bid(instance, now)
        if ended and now >= instance.end_date + instance.grace_s / self._provider.time_scale:
            self._provider.destroy(instance.id)
        elif ended and (instance.intended == RUNNING or instance.outbid):
            self._provider.set_state(instance.id, STOPPED)
        elif outbid and instance.intended == RUNNING:
            self._ledger.change(instance.id, intended=STOPPED, outbid=True, changed_at=now)
        elif instance.outbid and not outbid and self._ledger.credit(now) > 0:
            self._ledger.change(instance.id, intended=RUNNING, outbid=False, changed_at=now)

    async def _bury(self, instance: Instance, destroyed_at: float, now: float) -> None:
        if self._boxes.exists(instance.id):
            await self._wipe(instance.id)
        if now >= destroyed_at + GONE_AFTER_S / self._provider.time_scale + instance.lingers_s:
            self._ledger.change(instance.id, gone=True, allocated=False, ports=None)

    async def _wipe(self, instance_id: int) -> None:
        await self.switch_off(instance_id)
        await self._boxes.wipe(instance_id)

    async def _advance(self, instance: Instance, now: float) -> None:
        waits = instance.intended == RUNNING and not instance.allocated and not instance.stalled
        if waits and self._provider.gpus_free(instance):
            self._ledger.change(instance.id, allocated=True, changed_at=now)  # a queued start comes true
            return
        status = next_status(instance, now, self._provider.time_scale)
        if status is not None:
            await self._move(instance, status, now)
            return
        if instance.offline_until and not instance.offline(now):
            instance = self._ledger.change(instance.id, offline_until=0.0)  # it bills again
        if instance.status == RUNNING:
            await self._keep_reachable(instance, now)
        elif self._boxes.is_up(instance.id):
            await self.switch_off(instance.id)  # it is restarting

    async def _move(self, instance: Instance, status: str, now: float) -> None:
        """Prepare the disk or the processes for the next status, then let it hold."""
        if instance.status == RECYCLING:
            await self._wipe(instance.id)
        if status == LOADING and not self._boxes.exists(instance.id):
            image = self._provider.images.find(instance.image)
            if image is None:
                failed = f"Error response from daemon: manifest for {instance.image} not found: manifest unknown"
                self._ledger.change(instance.id, status=CREATED, status_msg=failed, changed_at=now)
                return
            self._boxes.create(instance, image)
        if status in (EXITED, RUNNING) and self._boxes.exists(instance.id):
            await self.switch_off(instance.id)
        current = self._ledger.get(instance.id)
        if current is None or next_status(current, now, self._provider.time_scale) != status:
            return  # something was asked meanwhile: the next tick decides anew
        current = moved(current, status, now, self._provider.time_scale)
        if status == RUNNING:
            current = replace(current, ports=self._free_ports(current.address))
        self._ledger.save(current, now)

    async def _keep_reachable(self, instance: Instance, now: float) -> None:
        """sshd is up exactly while the box is running, online and not refusing."""
        self._boxes.allow(instance, now)
        self._ledger.set_traffic(instance.id, self._boxes.traffic(instance.id))
        up = self._boxes.is_up(instance.id)
        if instance.offline(now) or now < self._refused_until.get(instance.id, 0.0):
            if up:
                await self._boxes.silence(instance.id)
        elif not up and self._boxes.may_start(instance.id):
            if instance.ports is not None and not are_free(instance.ports, instance.address):
                instance = self._ledger.change(instance.id, ports=self._free_ports(instance.address))
            self._boxes.start(instance, boot=instance.needs_boot)
            if instance.needs_boot:
                self._ledger.change(instance.id, needs_boot=False)

    def _free_ports(self, address: str) -> tuple[int, int]:
        return free_ports((port for other in self._ledger.existing() for port in other.ports or ()), address)

    # What happens to a box without anybody asking

    def move_endpoint(self, instance: Instance, address: str) -> None:
        """Other ports, and this address for the direct one, from its next start of sshd on."""
        if instance.ports is not None:
            self._ledger.change(instance.id, address=address, ports=self._free_ports(address))

    def ssh_refuses(self, instance: Instance, seconds: float) -> None:
        self._refused_until[instance.id] = time.time() + seconds
