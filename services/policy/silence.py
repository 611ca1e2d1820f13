"""Whether a host has fallen silent: it owes answers, and none has come for longer than any should take.

Deadlines alone would find a frozen host out only when the calls there are lost. What is counted is the time in
which this process listened: while it was held up itself, nobody could have been heard.
"""

from collections.abc import Iterable

from services.policy.ejection import Ejected, Reason
from services.policy.scoring import HostState, Owed

SILENCE_S = 0.5
"""Silence that is none for any call: a host's loop may be held up that long, and five of its beats with it."""

LEAST_SILENCE_S = 0.1
"""The same where a call has so little time that it would be lost by then."""

UNMEASURED_SILENCE_S = 1.0
"""The same where the host has not said how long a batch takes: the first calls of a version may be slow. A probe
knows what it is for."""

SILENT_FACTOR = 3.0
"""An answer that takes this many times the prediction is overdue."""

TIME_SHARE = 0.5
"""A call goes elsewhere no later than after this part of its time, so that it may still be answered there."""


def limit_s(owed: Owed) -> float:
    """How long a host may say nothing while it has this call."""
    state = owed.state
    expected_s = SILENT_FACTOR * (owed.predicted_s + state.absent_s)
    if not owed.probe and not state.measured(owed.sent_s):
        return max(expected_s, UNMEASURED_SILENCE_S)
    return max(expected_s, LEAST_SILENCE_S, min(SILENCE_S, TIME_SHARE * owed.timeout_s))


def listen(hosts: Iterable[HostState], *, for_s: float, now_s: float) -> list[Ejected]:
    """Go on by a step in which this process listened.

    Args:
        hosts: All that there are.
        for_s: How long the step was.
        now_s: Monotonic seconds.

    Returns:
        Hosts that have fallen silent; each starts anew.
    """
    silent = []
    for host in hosts:
        if not host.owed:
            continue
        host.silent_s += for_s
        if host.silent_s > LEAST_SILENCE_S and _is_silent(host, now_s):
            silent.append(Ejected(host, Reason.SILENT, f"said nothing for {host.silent_s:.2g} s, and owed answers"))
            host.silent_s = host.missed_s = 0.0
    return silent


def gave_up(host: HostState, owed: Owed, now_s: float) -> None:
    """Nobody waits any more for a call that the host has; if it was overdue, its silence still counts."""
    if now_s - owed.sent_s > owed.predicted_s:
        host.missed_s = limit_s(owed)


def _is_silent(host: HostState, now_s: float) -> bool:
    silent_s = host.silent_s
    if host.missed_s and silent_s > host.missed_s:
        return True
    return any(min(silent_s, now_s - owed.sent_s) > limit_s(owed) for owed in host.owed)
