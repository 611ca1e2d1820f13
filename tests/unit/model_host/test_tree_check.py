from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.base import BaseEstimator
from sklearn.calibration import CalibratedClassifierCV
from sklearn.compose import ColumnTransformer
from sklearn.datasets import load_iris
from sklearn.ensemble import (
    AdaBoostClassifier,
    BaggingClassifier,
    ExtraTreesClassifier,
    GradientBoostingClassifier,
    HistGradientBoostingClassifier,
    IsolationForest,
    RandomForestClassifier,
    StackingClassifier,
    VotingClassifier,
)
from sklearn.feature_selection import SelectFromModel
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import PolynomialFeatures
from sklearn.tree import DecisionTreeClassifier
from skops import io as skops_io

from services.domain.errors import ArtifactRejected
from services.domain.model import TensorSpec
from services.domain.objects import Artifact, Backend, Metadata, Model, ModelVersion
from services.model_host.backends.sklearn_backend import SklearnBackend
from services.model_host.backends.tree_check import check_trees
from services.model_host.devices.cpu import CpuDevice

IRIS, SPECIES = load_iris(return_X_y=True)
CPU = CpuDevice(name="test", memory_bytes=1 << 30)


def tree(**more: Any) -> DecisionTreeClassifier:
    return DecisionTreeClassifier(random_state=1, **more)


def fitted(estimator: BaseEstimator) -> Any:
    return estimator.fit(IRIS, SPECIES)


@pytest.mark.parametrize(
    "estimator",
    [
        tree(),
        tree(max_leaf_nodes=5),
        tree(ccp_alpha=0.01),
        RandomForestClassifier(5, random_state=1),
        ExtraTreesClassifier(5, random_state=1),
        GradientBoostingClassifier(n_estimators=3),
        HistGradientBoostingClassifier(max_iter=3),
        HistGradientBoostingClassifier(max_iter=3, categorical_features=[0], min_samples_leaf=5),
        IsolationForest(n_estimators=5, random_state=1),
        AdaBoostClassifier(n_estimators=3),
        BaggingClassifier(tree(), 3, max_features=2),
        CalibratedClassifierCV(tree(max_depth=2), cv=2),
        VotingClassifier([("a", tree()), ("b", LogisticRegression(max_iter=1000))]),
        StackingClassifier([("a", tree())], final_estimator=tree(), cv=2),
        make_pipeline(PolynomialFeatures(2), tree()),
        make_pipeline(
            ColumnTransformer([("p", make_pipeline(PolynomialFeatures(3), SelectFromModel(tree())), [0, 1])]), tree()
        ),
    ],
    ids=lambda estimator: type(estimator).__name__,
)
def test_trees_that_scikit_learn_grew_stay_within_themselves(estimator: BaseEstimator) -> None:
    data = np.round(IRIS) if isinstance(estimator, HistGradientBoostingClassifier) else IRIS
    check_trees(estimator.fit(data, SPECIES))


def changed(field: str, node: int, value: int) -> Callable[[Any], None]:
    def change(grown: Any) -> None:
        state = grown.__getstate__()
        state["nodes"][field][node] = value
        grown.__setstate__(state)

    return change


CHANGES = {
    "a child far behind": changed("left_child", 0, 1 << 40),
    "a child one behind": changed("right_child", 0, 5),
    "a child before": changed("right_child", 0, -7),
    "a circle": changed("left_child", 2, 0),
    "itself": changed("right_child", 2, 2),
    "a column far behind": changed("feature", 0, 1 << 40),
    "a column one behind": changed("feature", 0, 4),
    "a column before": changed("feature", 0, -3),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_tree_that_leads_out_of_itself_is_refused_at_the_load(change: Callable[[Any], None], tmp_path: Path) -> None:
    estimator = fitted(tree(max_depth=2))
    assert estimator.tree_.node_count == 5
    change(estimator.tree_)
    skops_io.dump(estimator, tmp_path / "m.skops")
    version = ModelVersion(Metadata("m"), "1.0.0", Backend("sklearn"), Artifact("file:/x", "0" * 64), max_batch_size=8)
    model = Model(Metadata("m"), (TensorSpec("x", "FP64", (-1, 4)),), (TensorSpec("y", "INT64", (-1,)),))
    backend = SklearnBackend()
    backend.prepare(CPU)
    with pytest.raises(ArtifactRejected, match="a Tree leads out of itself or of its input's 4 columns"):
        backend.load(tmp_path / "m.skops", {}, version, model, CPU)


def test_an_estimator_that_says_it_takes_fewer_columns_than_its_tree_is_refused() -> None:
    estimator = fitted(tree())
    estimator.n_features_in_ = 2
    with pytest.raises(ArtifactRejected, match="its input's 2 columns"):
        check_trees(estimator)


def test_boosted_trees_are_held_to_what_the_whole_checks() -> None:
    """scikit-learn looks at the columns once for all of them."""
    estimator = fitted(GradientBoostingClassifier(n_estimators=2))
    estimator.n_features_in_ = 1
    with pytest.raises(ArtifactRejected, match="its input's 1 columns"):
        check_trees(estimator)


def test_a_tree_in_nothing_that_knows_its_columns_is_refused() -> None:
    with pytest.raises(ArtifactRejected, match="in no estimator"):
        check_trees({"tree": fitted(tree()).tree_})


@pytest.mark.parametrize(
    ("field", "value"), [("left", 1 << 30), ("right", 0), ("feature_idx", 99), ("feature_idx", -1)]
)
def test_a_tree_of_a_histogram_is_held_to_the_same(field: str, value: int) -> None:
    estimator = fitted(HistGradientBoostingClassifier(max_iter=1))
    estimator._predictors[0][0].nodes[field][0] = value
    with pytest.raises(ArtifactRejected, match="a TreePredictor leads out"):
        check_trees(estimator)


@pytest.mark.parametrize("wrong", ["set", "words", "column"])
def test_a_category_that_there_is_no_set_for_is_refused(wrong: str) -> None:
    estimator = HistGradientBoostingClassifier(max_iter=1, categorical_features=[0, 1, 2, 3], min_samples_leaf=5)
    estimator.fit(np.round(IRIS), SPECIES)
    predictor = estimator._predictors[0][0]
    assert predictor.nodes["is_categorical"].any()
    if wrong == "set":
        predictor.nodes["bitset_idx"] = 1000
    elif wrong == "words":
        predictor.raw_left_cat_bitsets = predictor.raw_left_cat_bitsets[:, :4]
    else:
        estimator._bin_mapper.is_categorical_ = np.zeros(4, np.uint8)
    with pytest.raises(ArtifactRejected, match="a TreePredictor leads out"):
        check_trees(estimator)
