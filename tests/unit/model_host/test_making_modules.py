"""Making a module for weights that come from a file."""

import pytest
import torch

from services.domain.errors import ArtifactRejected
from services.model_host.backends import architectures
from services.model_host.backends.torch_backend import _uninitialised

OPTIONS = {"sizes": "64,64,64", "task": "regress"}


def test_weights_that_are_overwritten_are_not_drawn() -> None:
    before = torch.random.get_rng_state()
    with _uninitialised():
        architectures.build("mlp", OPTIONS, {})
    assert torch.equal(torch.random.get_rng_state(), before)
    architectures.build("mlp", OPTIONS, {})
    assert not torch.equal(torch.random.get_rng_state(), before)


def test_modules_are_initialised_as_ever_after_one_that_could_not_be_made() -> None:
    with pytest.raises(ArtifactRejected, match="sizes"), _uninitialised():
        architectures.build("mlp", {"sizes": "4", "task": "regress"}, {})
    layer = torch.nn.Linear(64, 64)
    assert 0.0 < float(layer.weight.detach().abs().max()) <= 1.0 / 8.0
