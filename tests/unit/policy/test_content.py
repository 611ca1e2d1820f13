"""Calls go to candidates by what they are about."""

from dataclasses import replace

import pytest

from services.domain.model import TensorMeta
from services.domain.request import RouteOptions
from services.domain.strategies import CandidateRule
from services.policy.content import unfit
from tests.fakes.objects import a_model

MODEL = replace(a_model("m"), task="triage", modality="image")
INPUTS = (TensorMeta("x", "FP32", (8, 4), raw_bytes=128),)


def why(*rules: CandidateRule, labels: dict[str, str] | None = None, domain: str = "", complexity: str = "") -> str:
    options = RouteOptions(labels=tuple(sorted((labels or {}).items())), domain=domain, complexity=complexity)
    return unfit(MODEL, rules, options, INPUTS)


def test_without_rules_and_labels_a_candidate_takes_every_call() -> None:
    assert why() == ""
    assert why(CandidateRule("other", domains=("law",))) == ""


@pytest.mark.parametrize(
    ("labels", "reason"),
    [
        ({"task": "triage", "modality": "image"}, ""),
        ({"task": "coding"}, "its task is 'triage', the call's 'coding'"),
        ({"modality": "text"}, "its modality is 'image', the call's 'text'"),
    ],
)
def test_task_and_modality_have_to_agree(labels: dict[str, str], reason: str) -> None:
    assert why(labels=labels) == reason


def test_a_label_has_to_be_there_with_its_value_or_any() -> None:
    png, typed = (CandidateRule("m", labels={"content_type": value}) for value in ("image/png", ""))

    assert why(png, labels={"content_type": "image/png"}) == ""
    assert why(png, labels={"content_type": "text/plain"}) == "it takes calls labelled content_type=image/png"
    assert why(typed, labels={"content_type": "text/plain"}) == ""
    assert why(typed) == "it takes calls labelled content_type"


def test_domain_and_complexity_are_of_those_allowed() -> None:
    rule = CandidateRule("m", domains=("law", "tax"), complexities=("easy",))

    assert why(rule, domain="tax", complexity="easy") == ""
    assert why(rule, domain="art", complexity="easy") == "it takes calls of domain law, tax"
    assert why(rule, domain="law") == "it takes calls of complexity easy"


def test_size_is_that_of_one_row() -> None:
    assert why(CandidateRule("m", min_elements=4, max_elements=4)) == ""
    assert why(CandidateRule("m", max_elements=3)) == "it takes calls of at most 3 elements a row, not of 4"
    assert why(CandidateRule("m", min_elements=5)) == "it takes calls of at least 5 elements a row, not of 4"


def test_of_several_rules_one_has_to_hold() -> None:
    rules = (CandidateRule("m", domains=("law",)), CandidateRule("m", max_elements=3))

    assert why(*rules, domain="law") == ""
    assert why(*rules) == "it takes calls of domain law; it takes calls of at most 3 elements a row, not of 4"
