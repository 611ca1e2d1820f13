"""What stands before a change: may it land, and if not, what was found.

Every object of the change is valid by itself and with the others before it comes here. A gate asks what validity does
not: whether those who use it today are served on, whether it is within what its pool allows, whether an owner wants it.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from services.domain.objects import Model, ModelVersion, Object, ObjectKey, Pool, Route, Template
from services.domain.schemas import input_misfits, output_misfits
from services.domain.templates import made_by
from services.policy.tree_diff import Action, Change

_MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Finding:
    """What a gate found about one object."""

    gate: str
    key: ObjectKey
    passed: bool
    text: str
    approvers: frozenset[str] | None = None
    """Whose approval would let it pass; None if no approval can, or none is lacking."""


@dataclass(frozen=True, slots=True)
class Review:
    """A change, as its gates see it."""

    before: Mapping[ObjectKey, Object]
    """Everything, before it."""
    touched: Mapping[ObjectKey, Object | None]
    """Objects that change, as they will be; None for those that go."""
    changes: Sequence[Change]
    author: str
    digest: str
    """Of the change: what it does to which object, from what to what."""

    def after(self, key: ObjectKey) -> Object | None:
        """An object as it will be."""
        return self.touched[key] if key in self.touched else self.before.get(key)


def digest_of(changes: Iterable[Change], before: Mapping[ObjectKey, str], after: Mapping[ObjectKey, str]) -> str:
    """Digest of a change, given the digests of its objects' stored forms before and after."""
    lines = sorted(f"{change.key}\t{before.get(change.key, '-')}\t{after.get(change.key, '-')}" for change in changes)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def static_findings(review: Review) -> list[Finding]:
    """What can be found without running anything, but for approvals."""
    return [*_schema_findings(review), *_limit_findings(review), *_template_findings(review)]


def _schema_findings(review: Review) -> Iterator[Finding]:
    """A model whose schema changes while it has versions: those who call it as it is must be served on."""
    changed: dict[str, tuple[Model, Model]] = {}
    for change in review.changes:
        old, new = review.before.get(change.key), review.touched.get(change.key)
        if isinstance(old, Model) and isinstance(new, Model) and (old.inputs, old.outputs) != (new.inputs, new.outputs):
            changed[change.key.name] = (old, new)
    if not changed:
        return
    versioned = {key.name for key in review.before if key.kind == "ModelVersion" and key.name in changed}
    for name in sorted(versioned):
        old, new = changed[name]
        misfits = [*input_misfits(new.inputs, old.inputs), *output_misfits(new.outputs, old.outputs)]
        text = (
            "; ".join(misfits) + " before: give the other schema to a model of another name"
            if misfits
            else ("whoever calls it as before is served on")
        )
        yield Finding("schema", new.key, not misfits, text)


def _limit_findings(review: Review) -> Iterator[Finding]:
    """Versions that come must be within what their pool allows, in memory and in what their model promises."""
    for change in review.changes:
        version = review.touched.get(change.key)
        if not isinstance(version, ModelVersion):
            continue
        pool = review.after(ObjectKey("Pool", version.pool)) if version.pool else None
        if not isinstance(pool, Pool):
            continue
        model = review.after(ObjectKey("Model", version.metadata.name))
        faults = []
        if pool.max_version_bytes and version.memory_bytes > pool.max_version_bytes:
            need, most = version.memory_bytes // _MIB, pool.max_version_bytes // _MIB
            faults.append(f"declares {need} MiB, pool '{version.pool}' allows a version {most}")
        slo_s = model.latency_slo_s if isinstance(model, Model) else None
        if pool.min_latency_slo_s and slo_s is not None and slo_s < pool.min_latency_slo_s:
            faults.append(
                f"its model promises {slo_s:g} s, in pool '{version.pool}' no less than "
                f"{pool.min_latency_slo_s:g} s may be promised"
            )
        if faults:
            yield Finding("limits", change.key, False, "; ".join(faults))
        elif pool.max_version_bytes or pool.min_latency_slo_s:
            yield Finding("limits", change.key, True, f"within the limits of pool '{version.pool}'")


def _template_findings(review: Review) -> Iterator[Finding]:
    """New versions must have a smoke test if the template that made them asks for one."""
    for change in review.changes:
        version = review.touched.get(change.key)
        if change.action is not Action.CREATE or not isinstance(version, ModelVersion):
            continue
        for template in _templates(review, change.key):
            if template.requires_smoke:
                has = version.smoke is not None
                text = f"has {'a' if has else 'no'} smoke test, which template '{template.metadata.name}' asks for"
                yield Finding("template", change.key, has, text)


@dataclass(frozen=True, slots=True)
class Protected:
    """An object that changes only if an owner wants it."""

    gate: str
    key: ObjectKey
    owners: frozenset[str]
    why: str
    """What asks for an approval, for a message."""
    owned: str = "it"
    """What its owners own."""


def protected(review: Review) -> list[Protected]:
    """What owners must let change: Routes that say so, Templates that do, and what those made. As it is before it."""
    found: list[Protected] = []
    for change in review.changes:
        item = review.before.get(change.key)
        if isinstance(item, Route) and item.protected:
            found.append(Protected("approval", change.key, owners(item.owner), "it is protected"))
        if isinstance(item, Template) and item.requires_approval:
            found.append(Protected("template", change.key, owners(item.owner), "it requires approval"))
        found += [
            Protected("template", change.key, owners(template.owner), f"{name} made it, which requires approval", name)
            for template in _templates(review, change.key)
            if template.requires_approval and (name := f"template '{template.metadata.name}'")
        ]
    return found


def _templates(review: Review, key: ObjectKey) -> list[Template]:
    """The templates, as they are before the change, that made an object as it was or as it will be."""
    names: dict[str, None] = {}
    for item in (review.before.get(key), review.touched.get(key)):
        if item is not None and (name := made_by(item.metadata.annotations)):
            names[name] = None
    found = (review.before.get(ObjectKey("Template", name)) for name in names)
    return [template for template in found if isinstance(template, Template)]


def owners(text: str) -> frozenset[str]:
    """Who may approve of a change to what has this owner: one, or several after one another with commas between."""
    return frozenset(owner for part in text.split(",") if (owner := part.strip()))


def approval_findings(review: Review, approved_by: str) -> list[Finding]:
    """Whether owners want it.

    Args:
        review: The change.
        approved_by: Who has approved of exactly this change; empty if nobody has.
    """
    findings = []
    for each in protected(review):
        if review.author in each.owners:
            finding = Finding(each.gate, each.key, True, f"{review.author} owns {each.owned}")
        elif approved_by in each.owners:
            finding = Finding(each.gate, each.key, True, f"{approved_by} has approved")
        elif each.owners:
            text = f"{each.why}, and an owner must approve: {', '.join(sorted(each.owners))}"
            finding = Finding(each.gate, each.key, False, text, each.owners)
        else:
            text = f"{each.why} and has no owner who could approve"
            finding = Finding(each.gate, each.key, False, text, each.owners)
        findings.append(finding)
    return findings
