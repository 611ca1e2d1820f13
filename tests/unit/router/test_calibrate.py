"""The command that fits what confidences are worth."""

import io
import json

import pytest

from services.router.calibrate import UNUSABLE, main


def run(text: str) -> tuple[int, str, str]:
    to, complaints = io.StringIO(), io.StringIO()
    status = main(io.StringIO(text), to, complaints)
    return status, to.getvalue(), complaints.getvalue()


def test_samples_become_points() -> None:
    text = "confidence,right\n" + "0.2,0\n0.2,1\n0.8,true\n" * 40

    status, said, _ = run(text)

    found = json.loads(said)
    assert status == 0
    assert found["samples"] == 120
    assert found["points"] == [[0.2, 0.5], [0.8, 40.5 / 41]]
    assert found["calibration_error"] < 0.1


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("0.5,1\n" * 49, "49 samples are too few"),
        ("0.5,1\nhigh,1\n", "line 2: 'high' is no confidence"),
        ("0.5,maybe\n", "line 1: 'maybe' must be 1 for right or 0 for wrong"),
        ("", "0 samples are too few"),
    ],
)
def test_what_is_no_sample_is_named(text: str, complaint: str) -> None:
    status, said, complaints = run(text)

    assert (status, said) == (UNUSABLE, "")
    assert complaints.startswith(complaint)
