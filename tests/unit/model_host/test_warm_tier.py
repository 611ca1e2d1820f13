import numpy as np
import pytest

from services.domain.model import TensorSpec
from services.domain.objects import Backend, Metadata, Model, ModelVersion
from services.model_host.predictor import Predictor
from services.model_host.tensors import NDArray
from services.model_host.warm_tier import WarmTier


class Doubling:
    """Doubles, while it is on the device."""

    def __init__(self, size: int) -> None:
        self.parked_bytes = size
        self.on_device = True

    def predict(self, inputs: dict[str, NDArray]) -> dict[str, NDArray]:
        assert self.on_device
        return {"y": inputs["x"] * 2}

    def park(self) -> None:
        self.on_device = False

    def unpark(self) -> None:
        self.on_device = True


class Fixed:
    """Cannot be parked."""

    def predict(self, inputs: dict[str, NDArray]) -> dict[str, NDArray]:
        return {"y": inputs["x"]}


def a_predictor(name: str, loaded: object) -> Predictor:
    spec = TensorSpec("x", "FP32", (-1, 4))
    model = Model(Metadata(name), (spec,), (TensorSpec("y", "FP32", (-1, 4)),))
    version = ModelVersion(Metadata(name), "1.0.0", Backend("torch"), max_batch_size=4)
    return Predictor(loaded, model, version)  # type: ignore[arg-type]


def test_what_is_kept_comes_back_and_computes_as_before() -> None:
    tier = WarmTier(100)
    predictor = a_predictor("a", Doubling(60))
    assert tier.park(predictor)
    assert tier.used_bytes == 60
    with pytest.raises(AssertionError):
        predictor.predict({"x": np.ones((1, 4), np.float32)}, 1)
    back = tier.take(predictor.key)
    assert back is predictor
    assert back.predict({"x": np.ones((1, 4), np.float32)}, 1)["y"].tolist() == [[2.0] * 4]
    assert tier.used_bytes == 0
    assert tier.take(predictor.key) is None


def test_what_left_longest_ago_makes_room() -> None:
    tier = WarmTier(100)
    predictors = [a_predictor(name, Doubling(40)) for name in "abc"]
    assert all(tier.park(each) for each in predictors)
    assert tier.used_bytes == 80
    assert tier.take(predictors[0].key) is None
    assert tier.take(predictors[1].key) is predictors[1]


def test_what_is_too_large_or_cannot_be_parked_is_not_kept() -> None:
    tier = WarmTier(100)
    assert not tier.park(a_predictor("large", Doubling(101)))
    assert not tier.park(a_predictor("fixed", Fixed()))
    assert not WarmTier(0).park(a_predictor("a", Doubling(1)))


def test_an_unloaded_version_is_not_kept() -> None:
    tier = WarmTier(100)
    predictor = a_predictor("a", Doubling(60))
    tier.park(predictor)
    tier.forget(predictor.key)
    assert tier.used_bytes == 0
    assert tier.take(predictor.key) is None
