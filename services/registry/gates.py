"""What stands before a change lands, in order: what can be read off it, owners' approvals, and smoke tests at last.

A change that does not pass leaves a record of the attempt and of everything that was found; nothing else changes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from services.domain.errors import GateFailed
from services.policy import gating
from services.policy.gating import Finding, Review

RETOLD = 5
"""Findings that a refusal names; the record has all."""


@dataclass(frozen=True, slots=True)
class Refused:
    """A change that did not pass, as it is kept."""

    review: Review
    findings: Sequence[Finding]
    approvers: Sequence[str]
    """Who could let it pass, if nothing else is in the way."""
    reason: str
    request_id: str


class Attempts(Protocol):
    """Where attempts and approvals are kept.

    Each method raises StoreUnavailable if the store leaves it unanswered for `timeout_s`.
    """

    async def keep(self, refused: Refused, *, timeout_s: float) -> str:
        """Keep the record of an attempt; returns its id."""
        ...

    async def approved_by(self, digest: str, *, timeout_s: float) -> str:
        """Who has approved of a change; empty if nobody has."""
        ...


class Smoke(Protocol):
    """Runs versions that come on a staging host."""

    def wanted(self, review: Review) -> bool:
        """Whether there is anything to run."""
        ...

    async def run(self, review: Review, *, timeout_s: float) -> list[Finding]:
        """What came of each version's smoke test; empty if none has any."""
        ...


class Gates:
    """All of them."""

    def __init__(self, *, attempts: Attempts, smoke: Smoke) -> None:
        """Store the arguments.

        Args:
            attempts: Where attempts and approvals are kept.
            smoke: Runs smoke tests.
        """
        self._attempts = attempts
        self._smoke = smoke

    def at_once(self, review: Review) -> tuple[Finding, ...] | None:
        """What was found of a change that is sure to land; None if that takes more than a look."""
        findings = gating.static_findings(review)
        if not all(finding.passed for finding in findings) or gating.protected(review) or self._smoke.wanted(review):
            return None
        return tuple(findings)

    async def pass_through(
        self, review: Review, *, reason: str, request_id: str, dry_run: bool, step_s: float, left_s: float
    ) -> tuple[Finding, ...]:
        """Let a change land, or say why not.

        Args:
            review: The change.
            reason: Why it is wanted.
            request_id: The request's id.
            dry_run: Whether it is only asked: findings then come as they are, and nothing runs or is kept.
            step_s: How long the store may take for one step.
            left_s: How long it all may take.

        Returns:
            What was found.

        Raises:
            GateFailed: It may not land; the attempt is kept.
            StoreUnavailable: The store does not answer.
        """
        findings = gating.static_findings(review)
        if gating.protected(review):
            approved_by = await self._attempts.approved_by(review.digest, timeout_s=step_s)
            findings += gating.approval_findings(review, approved_by)
        if dry_run:
            return tuple(findings)
        if all(finding.passed for finding in findings):
            findings += await self._smoke.run(review, timeout_s=left_s)
        failed = [finding for finding in findings if not finding.passed]
        if not failed:
            return tuple(findings)
        lacking = [finding.approvers for finding in failed if finding.approvers is not None]
        approvers = sorted(frozenset.intersection(*lacking)) if lacking else []
        attempt = await self._attempts.keep(Refused(review, findings, approvers, reason, request_id), timeout_s=step_s)
        raise _refusal(attempt, failed, approvers)


def _refusal(attempt: str, failed: Sequence[Finding], approvers: Sequence[str]) -> GateFailed:
    told = [f"{finding.gate} of {finding.key}: {finding.text}" for finding in failed[:RETOLD]]
    more = f" (and {len(failed) - RETOLD} more)" if len(failed) > RETOLD else ""
    ask = ""
    if approvers and all(finding.approvers is not None for finding in failed):
        ask = f"; once one of {', '.join(approvers)} has approved of attempt {attempt}, apply the same again"
    return GateFailed(
        f"nothing was changed: {'; '.join(told)}{more}{ask}",
        metadata={"attempt": attempt, "approvers": ",".join(approvers)},
    )
