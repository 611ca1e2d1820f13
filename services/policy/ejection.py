"""Which hosts are outliers among their peers, by what this router saw of them.

Success rate and failure percentage as gRFC A50 has them, once an interval. Since it is blind to time, a third
check runs each second: how much longer a host takes than was predicted of it. What is predicted is by the host's own
reports, so that a slow device among quick ones is no outlier, and a host that is slower than it says is one.
"""

import enum
import math
import statistics
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from services.policy.circuit import HOLD_S
from services.policy.scoring import HostState

INTERVAL_S = 10.0
"""How often rates are looked at (A50 `interval`)."""

EJECTED_S = 30.0
"""For how long a host is ejected the first time (A50 `base_ejection_time`); 300 s at most. One that fell silent, as
short as any other that failed: what its probes wait for is bounded."""

MOST_SHARE = 0.1
"""Part of the hosts that may be ejected at once, but one in any case (A50 `max_ejection_percent`)."""

RATE_HOSTS = 5
RATE_REQUESTS = 100
"""Least hosts, and requests of each, to compare success rates."""

RATE_DEVIATIONS = 1.9
"""Standard deviations below the mean from which a success rate is an outlier's."""

RATE_GAP = 0.02
"""And at least so far below it (A50 has no such bound): where next to nothing fails, deviations are as small."""

FAILURE_SHARE = 0.85
FAILURE_REQUESTS = 50
"""Share of failures, of at least so many requests, that is too much whatever the others do."""

SLOW_INTERVAL_S = 1.0
"""How often times are looked at."""

SLOW_ANSWERS = 5
"""Least answers to go by."""

SLOW_FACTOR = 3.0
"""A host that takes this many times what was predicted, and this many times more so than its median peer, is slow."""

SLOW_EXCESS_S = 0.010
"""Least time over the prediction, by the mean: below it is noise."""


LEAST_FORETOLD_S = 1e-6
"""A prediction is never taken to be less."""


class Reason(enum.Enum):
    """What made a host an outlier."""

    SUCCESS_RATE = "SUCCESS_RATE"
    FAILURES = "FAILURES"
    SLOW = "SLOW"
    SILENT = "SILENT"


class Ejected(NamedTuple):
    """A host to be ejected."""

    host: HostState
    reason: Reason
    why: str
    """For people."""


def by_rates(hosts: Sequence[HostState], now_s: float) -> list[Ejected]:
    """Hosts that fail more often than their peers, or almost always; since this was last asked."""
    seen = [(host, host.answers - host.rated[0], host.failures - host.rated[1]) for host in hosts]
    for host in hosts:
        host.rated = (host.answers, host.failures)
    found = {}
    rates = {
        host: answers / (answers + failures) for host, answers, failures in seen if answers + failures >= RATE_REQUESTS
    }
    if len(rates) >= RATE_HOSTS:
        mean = statistics.fmean(rates.values())
        least = mean - max(RATE_GAP, RATE_DEVIATIONS * statistics.pstdev(rates.values()))
        for host, rate in rates.items():
            if rate < least:
                why = f"{rate:.1%} of its calls succeed, {mean:.1%} among its peers"
                found[host] = Ejected(host, Reason.SUCCESS_RATE, why)
    for host, answers, failures in seen:
        total = answers + failures
        if total >= FAILURE_REQUESTS and failures > FAILURE_SHARE * total and host not in found:
            found[host] = Ejected(host, Reason.FAILURES, f"{failures} of its {total} calls failed")
    return _bounded(found.values(), hosts, now_s)


def by_time(hosts: Sequence[HostState], now_s: float) -> list[Ejected]:
    """Hosts that take much longer than was predicted of them, while their peers do not; of answers enough to say."""
    late: dict[HostState, tuple[float, float]] = {}
    for host in hosts:
        answers, took_s, foretold_s = host.timed
        count = host.answers - answers
        if count >= SLOW_ANSWERS:
            took_s, foretold_s = host.took_s - took_s, host.foretold_s - foretold_s
            late[host] = (took_s / max(foretold_s, LEAST_FORETOLD_S), (took_s - foretold_s) / count)
            host.timed = (host.answers, host.took_s, host.foretold_s)
    found = []
    for host, (times, excess_s) in late.items():
        if times <= SLOW_FACTOR or excess_s < SLOW_EXCESS_S:
            continue
        peers = [others for other, (others, _) in late.items() if other is not host]
        if peers and times > SLOW_FACTOR * max(1.0, statistics.median(peers)):
            found.append(Ejected(host, Reason.SLOW, f"answers take {times:.1f} times as long as predicted"))
    return _bounded(found, hosts, now_s)


def eject(ejected: Ejected, now_s: float) -> None:
    """Do it."""
    hold_s = HOLD_S if ejected.reason is Reason.SILENT else EJECTED_S
    ejected.host.ejection.open(now_s, why=ejected.why, hold_s=hold_s)


def _bounded(found: Iterable[Ejected], hosts: Sequence[HostState], now_s: float) -> list[Ejected]:
    """As many of them as may be ejected beside those that are; never the last host."""
    out = {host for host in hosts if host.ejection.cost_s(now_s)}
    room = min(max(1, math.floor(MOST_SHARE * len(hosts))), len(hosts) - 1) - len(out)
    return [each for each in found if each.host not in out][: max(0, room)]
