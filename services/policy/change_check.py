"""What is wrong with a change to a state: every fault at once, each at its place in the request.

What makes a state valid is in `domain.validation`; here it is told which object, deletion or field of the
request is to blame. Stored sizes, revisions and request ids are the registry's business.
"""

import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from services.domain.errors import Fault
from services.domain.objects import KINDS, Object, ObjectKey, Route, Tenant, references
from services.domain.semver import is_semver
from services.domain.texts import is_dns_label, name_faults, shown
from services.domain.validation import object_faults, validate
from services.policy.change_reach import Reach, UsersOf
from services.policy.tree_diff import immutable_changes

_NAMED_USERS = 5
"""Users of an object that a refusal names; the rest is counted."""


@dataclass(frozen=True, slots=True)
class Submitted:
    """One object of a request, as far as it could be read."""

    key: ObjectKey
    item: Object | None
    """None if it could not be read; `faults` then say why."""
    faults: tuple[Fault, ...] = ()
    """What the message itself shows, with paths from the object."""


def check(
    before: Mapping[ObjectKey, Object],
    submitted: Sequence[Submitted],
    deletes: Sequence[ObjectKey],
    users_of: UsersOf,
) -> list[Fault]:
    """Everything wrong with a change; looks at what it can affect, and not at all of the state.

    Args:
        before: The state it is made to.
        submitted: Objects to create or update, in the request's order.
        deletes: Objects to delete, in the request's order.
        users_of: Keys of the objects of `before` that refer to an object, which need not exist.

    Returns:
        Faults with paths such as `objects[3].model_version.artifact.sha256` and `deletes[0]`; empty if the
        change is allowed and leaves a valid state.
    """
    faults: list[Fault] = []
    place: dict[ObjectKey, int] = {}
    unread = {entry.key for entry in submitted if entry.item is None}
    for index, entry in enumerate(submitted):
        at = f"objects[{index}]"
        faults += [_moved(fault, at) for fault in entry.faults]
        if entry.item is None:
            continue
        first = place.setdefault(entry.key, index)
        if first != index:
            faults.append(Fault(at, f"{entry.key} stands in the request twice, at objects[{first}] already"))
            continue
        faults += [_moved(fault, at) for fault in object_faults(entry.item)]
        faults += [_moved(fault, at) for fault in _immutability_faults(before.get(entry.key), entry.item)]
    faults += _delete_faults(before, deletes, place)

    # A key that stands in the request twice is at fault anyway: the last one counts here.
    changes: dict[ObjectKey, Object | None] = {entry.key: entry.item for entry in submitted if entry.item is not None}
    changes.update((key, None) for key in deletes)
    reach = Reach(before, changes, users_of)
    faults += _reference_faults(reach, place, deletes, unread)
    return faults


def _moved(fault: Fault, at: str) -> Fault:
    return Fault(f"{at}.{fault.path}" if fault.path else at, fault.message)


def _immutability_faults(before: Object | None, after: Object) -> list[Fault]:
    if before is None:
        return []
    return [
        Fault(
            change.path,
            f"cannot change from '{change.before}' to '{change.after}': a ModelVersion is immutable but for "
            "min_replicas, failure_modes, owner, labels, annotations and tenant; make it a new version",
        )
        for change in immutable_changes(before, after)
    ]


def _delete_faults(
    before: Mapping[ObjectKey, Object], deletes: Sequence[ObjectKey], place: Mapping[ObjectKey, int]
) -> list[Fault]:
    faults = []
    seen: dict[ObjectKey, int] = {}
    for index, key in enumerate(deletes):
        at = f"deletes[{index}]"
        first = seen.setdefault(key, index)
        if first != index:
            faults.append(Fault(at, f"{key} stands in the request twice, at deletes[{first}] already"))
        elif key in place:
            faults.append(Fault(at, f"{key} is both applied, at objects[{place[key]}], and deleted"))
        elif key.kind not in KINDS:
            faults.append(Fault(f"{at}.kind", f"{shown(key.kind)} is none of {', '.join(KINDS)}"))
        elif not is_dns_label(key.name):
            faults += name_faults(key.name, f"{at}.name")
        elif key.version and not (key.kind == "ModelVersion" and is_semver(key.version)):
            faults.append(Fault(f"{at}.version", f"{shown(key.version)} is no version of a {key.kind}"))
        elif key not in before:
            faults.append(Fault(at, f"there is no {key} to delete; {nearest(key, before)}"))
    return faults


def nearest(key: ObjectKey, objects: Iterable[ObjectKey]) -> str:
    """What exists near `key`, for a message: versions of the same model, names alike, else how many there are."""
    peers = [other for other in objects if other.kind == key.kind]
    versions = sorted(other.version for other in peers if other.name == key.name and key.version)
    if versions:
        return f"'{key.name}' has {_listing(versions)}"
    names = sorted({other.name for other in peers})
    alike = difflib.get_close_matches(key.name, names, n=3, cutoff=0.6)
    if alike:
        return f"near it: {', '.join(alike)}"
    return f"there are: {_listing(names)}" if names else f"there is no {key.kind} at all"


def _listing(names: Sequence[str]) -> str:
    more = len(names) - _NAMED_USERS
    return ", ".join(names[:_NAMED_USERS]) + (f" and {more} more" if more > 0 else "")


def _reference_faults(
    reach: Reach, place: Mapping[ObjectKey, int], deletes: Sequence[ObjectKey], unread: set[ObjectKey]
) -> list[Fault]:
    """Faults of references, at the object that has one, or else at what broke it."""
    faults: list[Fault] = []
    after = reach.after
    gone = {key: index for index, key in enumerate(deletes) if key in reach.before and key not in after}
    users: dict[ObjectKey, list[str]] = {}
    found = {key: broken for key, broken in validate(reach.part(after), ()).items() if key in reach.judged}
    # What the state held before, under rules that may have been looser, is no fault of this change.
    known = {} if place.keys() >= found.keys() else validate(reach.part(reach.before), ())
    for key, all_broken in found.items():
        broken = all_broken if key in place else [fault for fault in all_broken if fault not in known.get(key, ())]
        if not broken:
            continue
        needs = references(after[key])
        if not unread.isdisjoint(needs):
            continue  # what is missing stands in the request, and could not be read
        if key in place:
            faults += [_moved(fault, f"objects[{place[key]}]") for fault in broken]
            continue
        lost = [need for need in needs if need in gone]
        for need in lost:
            users.setdefault(need, []).append(str(key))
        if not lost:
            cause = next((place[one] for one in _causes(after[key], after, place) if one in place), None)
            at = "" if cause is None else f"objects[{cause}]"
            faults += [Fault(at, f"would break {key}: {fault}") for fault in broken]
    for key, names in users.items():
        text = f"{key} is still used by {_listing(sorted(names))}: delete or change these too, or first"
        faults.append(Fault(f"deletes[{gone[key]}]", text))
    return faults


def _causes(item: Object, after: Mapping[ObjectKey, Object], place: Iterable[ObjectKey]) -> Iterator[ObjectKey]:
    """Objects whose change can break `item`: what it leads to over however many routes comes last."""
    seen: set[ObjectKey] = set()
    rest: list[Object] = [item]
    while rest:
        needs = [need for need in references(rest.pop()) if need not in seen]
        seen.update(needs)
        yield from needs
        rest += [after[need] for need in needs if need.kind == "Route" and need in after]
    if isinstance(item, Route):
        # A route and a model may share a name only if the route may choose that model.
        yield ObjectKey("Model", item.metadata.name)
    if isinstance(item, Tenant):
        # It may have come to have more than its quotas.
        name = item.metadata.name
        yield from (key for key in place if key in after and after[key].metadata.tenant == name)
