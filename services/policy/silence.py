"""Whether a host has fallen silent: it owes answers, and none has come for longer than any should take.

Deadlines alone would find a frozen host out only when the calls there are lost. What is counted is the time in
which this process listened: while it was held up itself, nobody could have been heard.
"""

from collections.abc import Iterable

from services.policy.ejection import Ejected, Reason
from services.policy.scoring import HostState

SILENCE_S = 0.25
"""Silence that is none for any call: a host's loop may be held up that long, and its answers with it."""

LEAST_SILENCE_S = 0.1
"""The same where a call has so little time that it would be lost by then."""

UNMEASURED_SILENCE_S = 1.0
"""The same where the host has not said how long a batch takes: the first calls of a version may be slow."""

SILENT_FACTOR = 3.0
"""An answer that takes this many times the prediction is overdue."""

TIME_SHARE = 0.5
"""A call goes elsewhere no later than after this part of its time, so that it may still be answered there."""


def limit_s(*, predicted_s: float, timeout_s: float, measured: bool) -> float:
    """How long a host may say nothing while it has a call.

    Args:
        predicted_s: When it is predicted to answer, what it has to bring into memory first included.
        timeout_s: Seconds that the call may take.
        measured: Whether that prediction is by what the host itself reported.
    """
    expected_s = SILENT_FACTOR * predicted_s
    if not measured:
        return max(expected_s, UNMEASURED_SILENCE_S)
    least_s = SILENCE_S
    if TIME_SHARE * timeout_s < least_s:
        least_s = max(LEAST_SILENCE_S, TIME_SHARE * timeout_s)
    return max(expected_s, least_s)


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


def gave_up(host: HostState, *, waited_s: float, predicted_s: float, limit_s: float) -> None:
    """Nobody waits any more for a call that the host has; if it was overdue, its silence still counts."""
    if waited_s > predicted_s:
        host.missed_s = limit_s


def _is_silent(host: HostState, now_s: float) -> bool:
    silent_s = host.silent_s
    if host.missed_s and silent_s > host.missed_s:
        return True
    return any(min(silent_s, now_s - owed.sent_s) > owed.limit_s for owed in host.owed)
