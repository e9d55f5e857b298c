"""Schedules: the number decides everything, and every state of the line is struck."""

from __future__ import annotations

from collections import Counter

from tests.chaos.schedule import AIMS, DEEDS, STATES, STRETCH, Kind, draw


def test_a_number_is_a_schedule() -> None:
    """Drawn twice, the same strokes; another number, others."""
    assert draw(7) == draw(7)
    assert draw(7).strokes != draw(8).strokes


def test_one_to_four_kills() -> None:
    """Every run kills, none more than four times, and all four counts occur."""
    kills = Counter(sum(stroke.deed.kind is Kind.KILL for stroke in draw(n).strokes) for n in range(200))

    assert set(kills) == {1, 2, 3, 4}


def test_25_runs_reach_every_state() -> None:
    """The runs of `make chaos` alone plan a kill in every state of the line."""
    planned = {s.moment.state for n in range(25) for s in draw(n).strokes if s.deed.kind is Kind.KILL}

    assert planned >= set(STATES)


def test_25_runs_meet_every_deed() -> None:
    """The runs of `make chaos` alone do everything that can be done to a run."""
    assert {s.deed for n in range(25) for s in draw(n).strokes} == set(DEEDS)


def test_every_aim_is_drawn() -> None:
    """No request that an order can wait for is left out."""
    assert {stroke.aim for n in range(300) for stroke in draw(n).strokes if stroke.aim} == set(AIMS)


def test_strokes_fall_inside_their_moment() -> None:
    """A stroke's delay lies in the span of its moment, stretched where real training makes it longer."""
    for n in range(300):
        for stroke in draw(n).strokes:
            stretch = STRETCH if draw(n).real and stroke.moment.works else 1.0
            assert 0 <= stroke.after_s <= stroke.moment.span_s * stretch, stroke.said()
