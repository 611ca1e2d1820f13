"""Changes that a gate kept out, and owners' approvals, in etcd.

Both are kept for a while: the last thousand attempts, and approvals for a week. The leading replica forgets the rest.
"""

import uuid

from modelyard.registry.v1 import registry_pb2 as pb
from services.chassis.etcd import delete_op
from services.domain.clock import Clock
from services.domain.errors import Fault, GateFailed, InvalidRequest, ObjectNotFound
from services.registry import layout, wire
from services.registry.collecting import Place, fenced
from services.registry.gates import Refused
from services.registry.values import TXN_OPS, Values

KEPT_ATTEMPTS = 1000
APPROVED_S = 7 * 86_400.0
"""How long an approval holds."""

STEP_TIMEOUT_S = 3.0
"""How long etcd may leave one step unanswered."""

_LISTED_FINDINGS = 200
"""Findings that a record has; a change of thousands of objects could have more than the store takes."""


class AttemptLog:
    """`gates.Attempts` in etcd."""

    def __init__(self, *, values: Values, clock: Clock) -> None:
        """Store the arguments.

        Args:
            values: Where it is stored.
            clock: Time.
        """
        self._values = values
        self._clock = clock

    async def keep(self, refused: Refused, *, timeout_s: float) -> str:
        """Keep an attempt; see `gates.Attempts`."""
        now_s = self._clock.wall_s()
        review = refused.review
        attempt = pb.Attempt(
            id=f"{int(now_s * 1000):012x}-{uuid.uuid4().hex[:6]}",
            time=layout.timestamp(now_s),
            author=review.author,
            reason=refused.reason,
            request_id=refused.request_id,
            change_digest=review.digest,
            changes=[wire.change_to(change) for change in review.changes[: layout.LISTED_CHANGES]],
            change_count=len(review.changes),
            findings=wire.findings_to(sorted(refused.findings, key=lambda each: each.passed)[:_LISTED_FINDINGS]),
            approvers=refused.approvers,
        )
        for change in attempt.changes:
            change.ClearField("fields")
        await self._values.write({layout.attempt_key(attempt.id): layout.raw_of(attempt)}, timeout_s)
        return attempt.id

    async def approved_by(self, digest: str, *, timeout_s: float) -> str:
        """Who approved of a change; see `gates.Attempts`."""
        (kv,) = await self._values.read([layout.approval_key(digest)], timeout_s)
        if kv is None:
            return ""
        approval = pb.Approval.FromString(kv.value)
        return approval.author if self._holds(approval) else ""

    async def attempts(self, limit: int, *, timeout_s: float) -> list[pb.Attempt]:
        """The newest attempts, newest first.

        Raises:
            StoreUnavailable: etcd does not answer.
        """
        found = await self._values.client.range_prefix(layout.ATTEMPTS, keys_only=True, timeout_s=timeout_s)
        keys = sorted((kv.key.decode() for kv in found.kvs), reverse=True)[:limit]
        kvs = await self._values.read(keys, timeout_s)
        return [pb.Attempt.FromString(kv.value) for kv in kvs if kv is not None]

    async def approve(self, request: pb.ApproveRequest, *, timeout_s: float) -> pb.Approval:
        """Approve of an attempt; see `RegistryService.Approve`.

        Raises:
            InvalidRequest: Something is not set.
            ObjectNotFound: No such attempt.
            GateFailed: Not by an owner, or it lacks no approval.
            StoreUnavailable: etcd does not answer.
        """
        faults = [Fault(name, "must not be empty") for name in ("attempt_id", "author") if not getattr(request, name)]
        if faults:
            raise InvalidRequest.of(faults)
        (kv,) = await self._values.read([layout.attempt_key(request.attempt_id)], timeout_s)
        if kv is None:
            raise ObjectNotFound(f"there is no attempt '{request.attempt_id}': 'yardctl attempts' lists them")
        attempt = pb.Attempt.FromString(kv.value)
        if not attempt.approvers:
            raise GateFailed(f"attempt {attempt.id} lacks no approval, or none that one owner could give")
        if request.author not in attempt.approvers:
            raise GateFailed(
                f"'{request.author}' owns not all of what attempt {attempt.id} changes: "
                f"{', '.join(attempt.approvers)} may approve"
            )
        approval = pb.Approval(
            change_digest=attempt.change_digest,
            author=request.author,
            reason=request.reason,
            time=layout.timestamp(self._clock.wall_s()),
            attempt_id=attempt.id,
        )
        await self._values.write({layout.approval_key(attempt.change_digest): layout.raw_of(approval)}, timeout_s)
        return approval

    async def forget(self, place: Place) -> None:
        """Delete what is kept no longer; the leader's task.

        Raises:
            StaleFencingToken: The place was lost.
            StoreUnavailable: etcd does not answer.
        """
        client = self._values.client
        attempts = await client.range_prefix(layout.ATTEMPTS, keys_only=True, timeout_s=STEP_TIMEOUT_S)
        old = sorted(kv.key.decode() for kv in attempts.kvs)[:-KEPT_ATTEMPTS]
        approvals = await client.range_prefix(layout.APPROVALS, timeout_s=STEP_TIMEOUT_S)
        old += [kv.key.decode() for kv in approvals.kvs if not self._holds(pb.Approval.FromString(kv.value))]
        for start in range(0, len(old), TXN_OPS):
            await fenced(self._values, place, [], [delete_op(key) for key in old[start : start + TXN_OPS]])

    def _holds(self, approval: pb.Approval) -> bool:
        return self._clock.wall_s() - approval.time.ToNanoseconds() / 1e9 < APPROVED_S
