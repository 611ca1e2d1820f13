"""What `yardctl cascade fit` takes out of a decision log, and puts into a route."""

from pathlib import Path

from services.domain.objects import Metadata, Route
from services.domain.strategies import (
    Calibration,
    CalibrationPoint,
    Cascade,
    CascadeStep,
    Escalation,
    RouteTarget,
)
from tests.unit.router.logged import LoggedWorld
from yardctl.cascade_commands import audits, calibrated


async def test_audits_of_one_step_are_taken_from_a_log(tmp_path: Path) -> None:
    world = LoggedWorld(tmp_path)
    await world.run(400)

    found = list(audits(world.files.kept(), "careful", 0))

    assert len(found) > 5
    assert {line.rpartition(",")[2] for line in found} == {"0", "1"}
    assert all(0.0 <= float(line.partition(",")[0]) <= 1.0 for line in found)
    assert list(audits(world.files.kept(), "careful", 1)) == []
    assert list(audits(world.files.kept(), "other", 0)) == []


def test_only_the_calibration_of_that_step_is_another() -> None:
    def route(*tables: Calibration | None) -> Route:
        steps = [
            CascadeStep(RouteTarget(f"m{at}"), Escalation("y", 0.5, table, 0.1)) for at, table in enumerate(tables)
        ]
        return Route(Metadata("r"), Cascade((*steps, CascadeStep(RouteTarget("last")))))

    made = calibrated(route(None, None), 1, [(0.2, 0.3), (0.9, 0.95)])

    assert made == route(None, Calibration((CalibrationPoint(0.2, 0.3), CalibrationPoint(0.9, 0.95))))
