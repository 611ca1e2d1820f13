"""Which lane the device serves next."""

import math
from collections.abc import Iterable, Mapping

from services.model_host.lane import Lane
from services.policy.fairness import Shares, TenantShare

SWEEP_EVERY_S = 0.1
"""How often calls are looked for whose deadline passed while others went before them."""


def next_lane(busy: Iterable[Lane], shares: Shares, now_s: float) -> tuple[Lane | None, float | None]:
    """The lane to serve; else how long to pause, None until a call comes.

    Args:
        busy: Lanes where calls wait.
        shares: Whose turn it is.
        now_s: Time now.
    """
    lanes = list(busy)
    if not lanes:
        return None, None
    if len(lanes) == 1:
        wait_s = lanes[0].company_s(now_s)
        return (lanes[0], None) if wait_s <= 0.0 else (None, min(SWEEP_EVERY_S, wait_s))
    waits_s = {lane: lane.company_s(now_s) for lane in lanes}
    chosen = _first_of(shares.next(), waits_s)
    if chosen is None:  # all that goes first waits for company, or for its version: others need not
        in_turn = (_first_of(share, waits_s) for share in shares.in_turn())
        chosen = next((each for each in in_turn if each is not None), None)
    return chosen, None if chosen is not None else min(SWEEP_EVERY_S, *waits_s.values())


def _first_of(share: TenantShare, waits_s: Mapping[Lane, float]) -> Lane | None:
    """Of the lanes that need not wait, the one where the tenant's earliest deadline is."""
    chosen: Lane | None = None
    due_s = math.inf
    for lane, wait_s in waits_s.items():
        flow = lane.flows.get(share)
        if flow is not None and wait_s <= 0.0 and flow.waiting[0].deadline_at_s < due_s:
            chosen, due_s = lane, flow.waiting[0].deadline_at_s
    return chosen
