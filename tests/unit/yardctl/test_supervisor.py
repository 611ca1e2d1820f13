from collections.abc import Mapping
from pathlib import Path

from services.domain.clock import ManualClock
from yardctl.errors import CommandError
from yardctl.layout import Addresses, Layout
from yardctl.parts import REGISTRY, Part, parts_of
from yardctl.supervisor import HEALTHY_S, LONGEST_REST_S, Supervisor, rest_s


class FakeParts:
    """Parts that end and start when the test says so."""

    def __init__(self) -> None:
        addresses = Addresses.from_base(20_000)
        self.parts: Mapping[str, Part] = parts_of(
            Layout.of(Path("mesh")), addresses, etcd=Path("etcd"), trace_ratio=0.0
        )
        self.codes: dict[str, int] = {}
        self.starts: list[str] = []
        self.broken = False

    def ended(self, name: str) -> int | None:
        return self.codes.get(name)

    def start_part(self, name: str) -> None:
        if self.broken:
            raise CommandError("no such file")
        del self.codes[name]
        self.starts.append(name)

    def pid(self, name: str) -> int:
        return len(self.starts)


def test_a_part_that_ends_is_restarted_at_once_and_said_so() -> None:
    parts, said = FakeParts(), list[tuple[str, str]]()
    supervisor = Supervisor(parts, clock=ManualClock(), report=lambda part, state: said.append((part, state)))
    supervisor.look()
    parts.codes[REGISTRY] = -9

    supervisor.look()

    assert parts.starts == [REGISTRY]
    assert said == [(REGISTRY, "was ended by SIGKILL"), (REGISTRY, "restarted (pid 1)")]


def test_a_part_that_keeps_ending_rests_longer_each_time_and_is_forgiven_once_it_ran_long() -> None:
    parts, clock = FakeParts(), ManualClock()
    supervisor = Supervisor(parts, clock=clock, report=lambda _part, _state: None)

    def rest_of_next_end() -> float:
        parts.codes[REGISTRY] = 1
        began_s, starts = clock.now_s(), len(parts.starts)
        while len(parts.starts) == starts:
            supervisor.look()
            if len(parts.starts) == starts:
                clock.advance(0.25)
        return clock.now_s() - began_s

    rests = [rest_of_next_end() for _ in range(10)]
    clock.advance(HEALTHY_S)

    assert rests == [0.0, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, LONGEST_REST_S, LONGEST_REST_S, LONGEST_REST_S]
    assert rest_of_next_end() == 0.0


def test_a_part_that_cannot_be_started_is_tried_again_after_a_rest() -> None:
    parts, clock = FakeParts(), ManualClock()
    supervisor = Supervisor(parts, clock=clock, report=lambda _part, _state: None)
    parts.broken, parts.codes[REGISTRY] = True, 1
    supervisor.look()
    parts.broken = False

    supervisor.look()
    assert parts.starts == []
    clock.advance(rest_s(1))
    supervisor.look()

    assert parts.starts == [REGISTRY]
