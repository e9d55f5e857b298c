"""What happens by itself, at some moment of the chaos: to the workstation, to the machines, at the person's hand."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import Context
from pathlib import Path
from typing import TYPE_CHECKING

from .loop import HOUR_S
from .machine import Machine
from .market import ANOTHERS, OURS
from .person import WORDS

if TYPE_CHECKING:
    from .simulation import Simulation


def _ours(sim: Simulation) -> Machine | None:
    there = [m for m in sim.market.machines.values() if m.label and m.id >= 1000 and m.is_there]
    return sim.chance.choice(there) if there else None


def _to_machine(act: Callable[[Simulation, Machine], object]) -> Callable[[Simulation], bool]:
    def befall(sim: Simulation) -> bool:
        if (machine := _ours(sim)) is not None:
            act(sim, machine)
        return machine is not None

    return befall


def sleep(sim: Simulation) -> None:
    sim.clock.suspend(sim.chance.choice((60.0, 2 * HOUR_S, 8 * HOUR_S)))


def wall_step(sim: Simulation) -> None:
    sim.clock.step_wall(sim.chance.choice((-HOUR_S, 24 * HOUR_S, 40.0)))


def power_cut(sim: Simulation) -> None:
    _end_all(sim, power=True)


def _end_all(sim: Simulation, *, power: bool = False) -> None:
    for life in sim.lives:
        sim.kill(life, power=power)


def second_daemon(sim: Simulation) -> None:
    """The lock is on a file system that forgot it; the newer epoch fences the older."""
    if any(not life.dead for life in sim.lives):
        sim.begin_life()


def box_silent(sim: Simulation, machine: Machine) -> None:
    sim.boxes.box(machine.id).silent_until = sim.clock.boot() + sim.chance.choice((30.0, 600.0, 3 * HOUR_S))


def runner_dies(sim: Simulation, machine: Machine) -> None:
    disk = sim.boxes.box(machine.id)
    disk.advance()
    disk.running, disk.progress_s = None, 0.0


def another_key(sim: Simulation, machine: Machine) -> None:
    """Put into the place of ours, and the daemon started anew; some time later ours again."""
    _change_key(sim, ANOTHERS)
    wait_s = sim.chance.choice((120.0, 900.0, 3 * HOUR_S))
    sim.loop.call_later(wait_s, our_key_again, sim, context=Context())


def our_key_again(sim: Simulation) -> None:
    if sim.market.account_of_key != OURS and not sim.over:
        _change_key(sim, OURS)


def _change_key(sim: Simulation, account: int) -> None:
    sim.market.account_of_key = account
    _end_all(sim)


def address_changes(sim: Simulation, machine: Machine) -> None:
    machine.port += 1


def key_changes(sim: Simulation, machine: Machine) -> None:
    machine.host_key = "ssh-ed25519 AAAA-second"


def label_edited(sim: Simulation, machine: Machine) -> None:
    machine.label = sim.chance.choice((None, "my box"))


def restored(sim: Simulation) -> None:
    """Now a copy is made; some time later it is put back, while no daemon runs."""
    path = sim.settings.paths.database
    copy = {p: p.read_bytes() for p in (path, Path(f"{path}-wal")) if p.exists()}

    def put_back() -> None:
        sim.copies -= 1
        if sim.over or sim.healing:
            return
        _end_all(sim)
        sim.say("person", "puts an older database back")
        sim.loop.call_soon(_swap, sim, copy, context=Context())

    sim.copies += 1
    sim.loop.call_later(sim.chance.choice((30.0, 200.0, 600.0)), put_back, context=Context())


def _swap(sim: Simulation, copy: dict[Path, bytes]) -> None:
    sim.put_back(copy)
    sim.witness.after_restore()
    sim.will_submit(sim.person.submit_forgotten)


def person(sim: Simulation) -> None:
    if sim.jobs:
        sim.hear(sim.chance.choice(WORDS))


def _says(word: str) -> Callable[[Simulation], None]:
    return lambda sim: sim.hear(word)


def model_deleted(sim: Simulation) -> bool:
    files = list(sim.settings.paths.models.glob("*/v*/*.gguf"))
    for file in files:
        file.unlink()
        sim.person.deleted_at = sim.clock.boot()
    return bool(files)


def credit_gone(sim: Simulation) -> None:
    sim.market.credit = 0
    for machine in sim.market.machines.values():
        if machine.label and machine.is_there:
            machine.power_off()


# Each says False when there was nothing that it could befall.
MISHAPS: dict[str, Callable[[Simulation], bool | None]] = {
    "sleep": sleep,
    "wall step": wall_step,
    "power cut": power_cut,
    "second daemon": second_daemon,
    "reboot": _to_machine(lambda sim, m: sim.boxes.box(m.id).reboot()),
    "box silent": _to_machine(box_silent),
    "host stops": _to_machine(lambda sim, m: m.power_off()),
    "host offline": _to_machine(lambda sim, m: m.go_offline(sim.chance.choice((120.0, 1500.0, 3 * HOUR_S)))),
    "another key": _to_machine(another_key),
    "address changes": _to_machine(address_changes),
    "host key changes": _to_machine(key_changes),
    "runner dies": _to_machine(runner_dies),
    "model deleted": model_deleted,
    "console destroys": _to_machine(lambda sim, m: m.end()),
    "console stops": _to_machine(lambda sim, m: m.power_off()),
    "vanishes": _to_machine(lambda sim, m: m.unlist(sim.chance.choice((20.0, 90.0, 900.0, 30_000.0)))),
    "label edited": _to_machine(label_edited),
    "restored": restored,
    "person": person,
    "credit gone": credit_gone,
    "price changes": _to_machine(lambda sim, m: m.reprice(sim.chance.choice((1_000_000, 4_000_000)))),
}
# What only prepares another fault (cells.py).
PREPARATIONS: dict[str, Callable[[Simulation], bool | None]] = {
    "eight hours asleep": lambda sim: sim.clock.suspend(8 * HOUR_S),
    "a day ahead": lambda sim: sim.clock.step_wall(24 * HOUR_S),
    "a day back": lambda sim: sim.clock.step_wall(-24 * HOUR_S),
    "host lost": _to_machine(lambda sim, m: m.go_offline(3 * HOUR_S)),
    "out of the listing": _to_machine(lambda sim, m: m.unlist(200.0)),
    "five times the price": _to_machine(lambda sim, m: m.reprice(5 * m.price)),
    "drips": _to_machine(lambda sim, m: setattr(sim.boxes.box(m.id), "drips", True)),
    "dear": _to_machine(lambda sim, m: m.reprice(400_000_000)),
    "out of sight": _to_machine(lambda sim, m: m.hide(3 * HOUR_S)),
    **{f"says {word}": _says(word) for word in WORDS},
}
