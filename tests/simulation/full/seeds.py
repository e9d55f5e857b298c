"""What a seed stands for: a sky, and for some a way as well."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from random import Random

from daemon.domain.lifecycle import JobState

from .cells import Cell, Strike, cells, road
from .faults import FAULTS, Sky
from .scenes import SCENES
from .simulation import Result, Simulation
from .template import AWAY, SCARCE, USUAL, Terms, Twin


def simulate(seed: int, families: Collection[str] = (), twin: Twin | None = None) -> Result:
    """The whole of one seed. With `families` its sky holds a fault of theirs, and every other one has a way of theirs.

    Of the seeds without, every third one has a way: to a cell of the table, or through a scene. `twin`: a second job.
    """
    chance = Random(seed)
    sky = Sky.of_seed(chance, families)
    way: Sequence[Strike] = ()
    terms = _terms(seed)
    if chance.random() < (0.5 if families else 0.33):
        way, terms = _way(chance, families, terms)
    return Simulation(seed, sky, way=way, dpo=_with_dpo(chance, way), terms=replace(terms, twin=twin)).run()


def twins(seed: int, families: Collection[str] = ()) -> Result:
    """The same with a second job beside the first, by a chance of its own."""
    own = Random(f"{seed} twin")
    return simulate(seed, families, Twin(own.choice((0.0, 0.0, 20.0, 150.0, 500.0)), dpo=own.random() < 0.5))


def _terms(seed: int) -> Terms:
    """By a chance of its own: the rest of a seed does not depend on it."""
    own = Random(f"{seed} terms")
    return replace(own.choice((USUAL, USUAL, AWAY, SCARCE)), timed=own.random() < 0.5)


def aim_of(seed: int) -> Cell:
    """The seeds pass through the table of cells in a scattered order."""
    return cells()[(seed * 7919) % len(cells())]


def aimed(seed: int) -> Result:
    """A run that goes for one cell, without any other fault than the road to it needs."""
    chance, way = Random(seed), road(aim_of(seed))
    return Simulation(seed, Sky(chance), way=way, dpo=_with_dpo(chance, way)).run()


def _way(chance: Random, families: Collection[str], terms: Terms) -> tuple[Sequence[Strike], Terms]:
    """A scene under its terms, or the road to a cell; of these families, where some are named."""
    scenes = [scene for scene in SCENES if not families or not set(families).isdisjoint(scene.families.split())]
    if scenes and chance.random() < 0.6:
        scene = chance.choice(scenes)
        return scene.way, scene.terms
    aims = [cell for cell in cells() if not families or FAULTS[cell.fault].family in families]
    return road(chance.choice(aims)), terms


def _with_dpo(chance: Random, way: Sequence[Strike]) -> bool:
    return chance.random() < 0.7 or any(strike.state == JobState.DPO for strike in way)
