"""What a version must say that answers in pieces."""

from dataclasses import replace

import pytest

from services.domain.objects import Generation
from services.domain.validation import object_faults
from tests.fakes.objects import a_version

VERSION = replace(a_version("storyteller"), generation=Generation())


def test_the_defaults_are_valid() -> None:
    assert object_faults(VERSION) == []


@pytest.mark.parametrize("field", ["sequences", "max_tokens", "prefill_tokens", "max_waiting"])
@pytest.mark.parametrize("value", [0, -1, (1 << 24) + 1])
def test_every_number_has_bounds(field: str, value: int) -> None:
    assert VERSION.generation is not None
    wrong = replace(VERSION, generation=replace(VERSION.generation, **{field: value}))

    (fault,) = object_faults(wrong)

    assert fault.path == f"model_version.generation.{field}"
    assert str(value) in fault.message


def test_it_puts_sequences_together_and_not_batches() -> None:
    (fault,) = object_faults(replace(VERSION, max_batch_size=8))

    assert fault.path == "model_version.batching.max_batch_size"
