"""What is done to which part, and when: follows from the seed alone. Pure."""

from __future__ import annotations

import random
from dataclasses import dataclass
from enum import StrEnum

# Longer than a job's lease (worker/queue/queue.py LEASE_S), so that a stopped worker loses its jobs.
STOPPED_WORKER_S = (7.0, 11.0)
STOPPED_S = (1.0, 8.0)
# How long a part that ended stays away; some time without, as under a quick supervisor.
AWAY_S = (0.0, 4.0)
# Nothing is done at first, while everything boots.
BEGINS_AT_S = 2.0
_GAP_S = (1.6, 4.6)


class Action(StrEnum):
    """What is done to a part."""

    KILL = "kill -9"
    KILL_CHILD = "kill -9 of a child"
    TERM = "SIGTERM"
    TERM_TWICE = "SIGTERM twice"
    STOP = "SIGSTOP"
    STOP_CHILD = "SIGSTOP of a child"
    CUT = "connections cut"
    CUT_REPLIES = "replies cut in the middle"


# The issue counts these: a part, or a process of it, is ended from outside.
KILLS = frozenset({Action.KILL, Action.KILL_CHILD, Action.TERM, Action.TERM_TWICE})

WORKER, QUEUE, DATABASE = "worker", "valkey", "postgresql"
PRODUCER, PROVIDER, RECEIVER, TOOLS = "producer", "provider", "receiver", "tools"

# part -> how often it is chosen, and how often each action is then
_WEIGHTS: dict[str, tuple[int, dict[Action, int]]] = {
    WORKER: (
        40,
        {
            Action.KILL: 7,
            Action.KILL_CHILD: 9,
            Action.TERM: 4,
            Action.TERM_TWICE: 2,
            Action.STOP: 3,
            Action.STOP_CHILD: 4,
        },
    ),
    QUEUE: (14, {Action.KILL: 7, Action.TERM: 1, Action.STOP: 2, Action.CUT: 3}),
    DATABASE: (13, {Action.KILL: 4, Action.KILL_CHILD: 4, Action.TERM: 2, Action.STOP: 2, Action.CUT: 3}),
    PRODUCER: (10, {Action.KILL: 7, Action.TERM: 1, Action.STOP: 1}),
    PROVIDER: (11, {Action.KILL: 5, Action.TERM: 1, Action.STOP: 1, Action.CUT: 2, Action.CUT_REPLIES: 2}),
    RECEIVER: (6, {Action.KILL: 4, Action.TERM: 1, Action.STOP: 1}),
    TOOLS: (6, {Action.KILL: 4, Action.TERM: 1, Action.STOP: 1}),
}


@dataclass(frozen=True, slots=True)
class Disturbance:
    """One thing to do, `at_s` after the beginning.

    `number` chooses among the part's instances and their processes; `for_s` is how long it is
    stopped, or stays away before it is started again.
    """

    at_s: float
    part: str
    action: Action
    number: int
    for_s: float


def plan(*, seed: int, minutes: float) -> list[Disturbance]:
    """Return all that is done within so many minutes, in order of time; the same for the same seed."""
    chosen = random.Random(seed)  # noqa: S311 - a plan, no secret
    parts, weights = list(_WEIGHTS), [weight for weight, _ in _WEIGHTS.values()]
    planned: list[Disturbance] = []
    at_s = BEGINS_AT_S
    while (at_s := at_s + chosen.uniform(*_GAP_S)) < minutes * 60:
        part = chosen.choices(parts, weights)[0]
        actions = _WEIGHTS[part][1]
        action = chosen.choices(list(actions), list(actions.values()))[0]
        planned.append(
            Disturbance(at_s, part, action, number=chosen.randrange(1 << 16), for_s=_for_s(part, action, chosen))
        )
    return planned


def _for_s(part: str, action: Action, chosen: random.Random) -> float:
    if action in (Action.STOP, Action.STOP_CHILD):
        return chosen.uniform(*(STOPPED_WORKER_S if part == WORKER else STOPPED_S))
    # Half of the time it is started again at once.
    return max(0.0, chosen.uniform(-AWAY_S[1], AWAY_S[1])) if action in KILLS else 0.0
