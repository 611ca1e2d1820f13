"""Settings of the router."""

from dataclasses import replace

import pytest

from services.router.config import WORKERS_MOST, Config

WORKER = Config(workers=4, worker=2, worker_counts=7)


def test_defaults_and_a_worker_are_without_fault() -> None:
    assert Config().faults() == []
    assert WORKER.faults() == []


@pytest.mark.parametrize(
    ("config", "fault"),
    [
        (Config(workers=0), "workers: 0 must be in 1 to 64"),
        (Config(workers=WORKERS_MOST + 1), "workers: 65 must be in 1 to 64"),
        (Config(workers=2, address="unix:/run/router"), "workers: 2 cannot share a Unix socket"),
        (replace(WORKER, worker=4), "worker: 4 must be in 0 to 3"),
        (replace(WORKER, worker=-1), "worker: -1 must be in 0 to 3"),
        (replace(WORKER, worker=None), "both are set, by the parent of workers, or neither"),
        (replace(WORKER, worker_counts=None), "both are set, by the parent of workers, or neither"),
    ],
)
def test_settings_of_workers_that_do_not_fit_are_faults(config: Config, fault: str) -> None:
    (found,) = config.faults()

    assert fault in found


def test_one_worker_writes_the_snapshot_and_so_does_a_router_by_itself() -> None:
    assert Config().writes_snapshot
    assert [replace(WORKER, worker=worker).writes_snapshot for worker in range(4)] == [True, False, False, False]


def test_workers_send_like_routers_and_share_what_one_has() -> None:
    assert replace(WORKER, routers=3).senders == 12
    assert WORKER.share == 0.25
    assert (Config().senders, Config().share) == (1, 1.0)


def test_a_decision_log_has_a_share_and_bounds() -> None:
    faults = replace(Config(), decision_log_ratio=0.0, decision_log_max_bytes=1000, decision_log_files=0).faults()

    assert [fault.split(":")[0] for fault in faults] == [
        "decision_log_ratio", "decision_log_max_bytes", "decision_log_files",
    ]  # fmt: skip
    assert Config().decision_log_dir is None
