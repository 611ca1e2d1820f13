"""Which host a session's calls stay on: rendezvous hashing with bounded load.

Every host has a rank for a session, a hash of both (Thaler and Ravishankar, "Using name-based mappings to increase hit
rates", IEEE/ACM ToN 6(1), 1998). The host of the highest rank gets the session's calls, as long as that leaves it with
at most a multiple of its share of all calls; else the next one does (Mirrokni, Thorup and Zadimoghaddam, "Consistent
hashing with bounded loads", SODA 2018). Their shares are even; here they are as hosts are fast, for by even ones those
four times as slow as others would have the longest queue by far. A host that goes takes with it only its own sessions'
place, and one that comes takes over an even part of all. Nothing is remembered, and routers of the same seed agree.
"""

import math
from collections.abc import Sequence
from functools import lru_cache

from services.domain.rng import KeyedRng
from services.domain.service_class import DEFAULT_BAND
from services.domain.tenancy import PROTECTED, Protection
from services.policy.balancing import Pick
from services.policy.scoring import VersionState, awaits_probe, backlog, completion_s, penalty_s

LEAST_S = 1e-6
"""Time of a call by which hosts are compared that have not said any."""

ROUNDING = 1e-9
"""Of a bound that comes out a hair above a whole number."""

_WHOLE = (1 << 64) - 1
_HOSTS = KeyedRng(0)


def session_bits(rng: KeyedRng, session: str, version: str) -> int:
    """What ranks hosts for a session of a version; 64 bits."""
    return rng.bits(session, f"session/{version}")


def keep(
    states: Sequence[VersionState],
    session: int,
    *,
    load_factor: float,
    now_s: float,
    routers: int,
    band: int = DEFAULT_BAND,
    protection: Protection = PROTECTED,
    may_probe: bool = False,
) -> Pick | None:
    """The session's host.

    Args:
        states: Hosts that have the version ready.
        session: The session's bits.
        load_factor: Most calls of a host, as a multiple of its share of all and this one; 1 or more.
        now_s: Monotonic seconds.
        routers: Routers that send to these hosts, this one included.
        band: The call's; calls of later bands do not go before it.
        protection: Which signs of trouble are regarded.
        may_probe: Whether the call may be the one that sees whether a host is well again.

    Returns:
        The pick; None if every host is in trouble, or would have to bring the version into memory first.
    """
    sound = [
        state
        for state in states
        if not state.absent_s
        and (not penalty_s(state, now_s, protection) or (may_probe and awaits_probe(state, now_s)))
    ]
    if not sound:
        return None
    loads = [backlog(state, now_s, routers=routers, band=band) for state in sound]
    speeds = [state.batch_cap / max(LEAST_S, state.batch_s(state.batch_cap, now_s)) for state in sound]
    most = load_factor * (sum(loads) + 1) / sum(speeds)
    _, at = max(
        (rank(session, state.host.host_id), at)
        for at, state in enumerate(sound)
        if loads[at] < math.ceil(most * speeds[at] - ROUNDING)
    )
    state = sound[at]
    probe = may_probe and penalty_s(state, now_s, protection) > 0.0
    return Pick(state, completion_s(state, now_s, routers=routers, band=band), 0.0, probe)


def rank(session: int, host_id: str) -> int:
    """A host's rank for a session; 64 bits, mixed as by SplitMix64 (Steele, Lea and Flood, OOPSLA 2014)."""
    bits = session ^ _host_bits(host_id)
    bits = (bits ^ bits >> 30) * 0xBF58476D1CE4E5B9 & _WHOLE
    bits = (bits ^ bits >> 27) * 0x94D049BB133111EB & _WHOLE
    return bits ^ bits >> 31


@lru_cache(4096)
def _host_bits(host_id: str) -> int:
    return _HOSTS.bits(host_id, "session/host")
