"""Whether a leader changed anything after it had lost its place.

A candidate's key in an election says who leads: the one created first. What leaders write tells, in its value, whose
write it is; so each write can be held against the election as it was at that moment.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from google.protobuf.message import DecodeError

from modelyard.registry.v1 import registry_pb2 as pb
from tests.chaos.registry.events import Event
from tests.chaos.registry.truth import PREFIX

_ELECTIONS = f"{PREFIX}elections/"
_SWEEP, _PLAN = f"{PREFIX}sweep", f"{PREFIX}live/plan"
LED = f"{PREFIX}chaos/"
"""`LED<election>/<what>` is written by the leader of an election of the test; its value is the fencing token."""


@dataclass(frozen=True, slots=True)
class StaleWrite:
    """A write that was accepted from one who did not lead."""

    store_revision: int
    key: str
    token: int
    lost: int
    """etcd's revision at which its place was lost; 0 if it never was first."""


class Fences:
    """Takes every transaction from the first on."""

    def __init__(self) -> None:
        """Nobody leads."""
        self.stale: list[StaleWrite] = []
        self.led = 0
        """Writes of leaders, stale ones included."""
        self.lost: dict[int, int] = {}
        """Fencing token of every place that is gone, with etcd's revision then."""
        self._places: dict[str, dict[str, int]] = {}

    def take(self, revision: int, events: Sequence[Event]) -> None:
        """The next transaction."""
        for event in events:
            found = _led(event)
            if found is not None:
                self._judge(revision, event.key, *found)
        for event in events:
            if not event.key.startswith(_ELECTIONS):
                continue
            election = event.key.removeprefix(_ELECTIONS).rpartition("/")[0]
            places = self._places.setdefault(election, {})
            if event.value is not None:
                places[event.key] = event.create_revision
            elif event.key in places:
                self.lost[places.pop(event.key)] = revision

    def _judge(self, revision: int, key: str, election: str, token: int) -> None:
        self.led += 1
        if min(self._places.get(election, {}).values(), default=0) != token:
            self.stale.append(StaleWrite(revision, key, token, self.lost.get(token, 0)))


def _led(event: Event) -> tuple[str, int] | None:
    """The election and the token that a write names; None if it is no leader's."""
    if event.value is None:
        return None
    if event.key == _SWEEP:
        return "registry", int(event.value)
    if event.key.startswith(LED):
        return event.key.removeprefix(LED).rpartition("/")[0], _token(event.value)
    if event.key == _PLAN:
        return "resource-manager", _token(event.value)
    return None


def _token(value: bytes) -> int:
    """The token in a value: in decimal, or as the leader's name in a plan."""
    if value.isdigit():
        return int(value)
    try:
        return int(pb.Plan.FromString(value).leader_id)
    except (DecodeError, ValueError):
        return 0
