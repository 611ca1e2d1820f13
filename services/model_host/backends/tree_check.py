"""Whether the trees of a scikit-learn estimator stay within themselves.

Trees are walked in compiled code that trusts its nodes: a child or a column that is not there is read from whatever
lies behind in memory, and a child that is its own ancestor is walked for ever. scikit-learn always numbers children
after their parents, so that a tree with such numbers ends.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from services.domain.errors import ArtifactRejected
from services.model_host.tensors import NDArray

MAX_OBJECTS = 2_000_000
"""Most parts of an estimator that are looked at; a forest of 1,000 trees has about 30,000."""

_LEAF = -1
_BITSET_WORDS = 8
_BOOSTED = ("GradientBoostingClassifier", "GradientBoostingRegressor")
"""Walk the nodes of their trees with rows that only they themselves have checked."""


def check_trees(estimator: object) -> None:
    """Look at every tree in `estimator`.

    Raises:
        ArtifactRejected: One leads out of itself, or of its input.
    """
    for tree, owner, columns in _trees(estimator):
        what = type(tree).__name__
        if columns is None:
            raise ArtifactRejected(f"sklearn: a {what} is in no estimator that says how many columns there are")
        nodes = tree.nodes if hasattr(tree, "nodes") else None
        if nodes is None:
            within = _is_within(tree.children_left, tree.children_right, tree.feature, columns)
        else:
            within = _is_within(
                np.where(nodes["is_leaf"], _LEAF, nodes["left"].astype(np.int64)),
                nodes["right"],
                nodes["feature_idx"],
                columns,
            ) and _categories_are_within(tree, owner, columns)
        if not within:
            raise ArtifactRejected(f"sklearn: a {what} leads out of itself or of its input's {columns} columns")


def _is_within(left: NDArray, right: NDArray, feature: NDArray, columns: int) -> bool:
    """Whether every node that is no leaf has children behind it, and a column that is there."""
    if not left.size:
        return False
    (inner,) = np.nonzero(left != _LEAF)
    children = np.concatenate([left[inner], right[inner]]).astype(np.int64)
    used = feature[inner].astype(np.int64)
    behind = bool((children > np.concatenate([inner, inner])).all() and (children < left.size).all())
    return behind and bool((used >= 0).all() and (used < columns).all())


def _categories_are_within(predictor: Any, owner: Any, columns: int) -> bool:
    """Whether the nodes of a histogram's tree that ask for a category have the sets that they ask."""
    nodes = predictor.nodes
    asking = nodes[(nodes["is_categorical"] != 0) & (nodes["is_leaf"] == 0)]
    if not asking.size:
        return True
    sets = predictor.raw_left_cat_bitsets
    known = np.asarray(getattr(getattr(owner, "_bin_mapper", None), "is_categorical_", ()), np.bool_)
    return bool(
        sets.ndim == 2
        and sets.shape[1] == _BITSET_WORDS
        and (asking["bitset_idx"] < sets.shape[0]).all()
        and known.shape == (columns,)
        and known[asking["feature_idx"].astype(np.int64)].all()
    )


def _trees(estimator: object) -> Iterator[tuple[Any, object, int | None]]:
    """Each tree, the estimator it is in, and the columns that it can count on.

    Raises:
        ArtifactRejected: The estimator has too many parts.
    """
    from sklearn.ensemble._hist_gradient_boosting.predictor import TreePredictor  # noqa: PLC0415
    from sklearn.tree._tree import Tree  # noqa: PLC0415

    seen: set[int] = set()
    waiting: list[tuple[object, object, int | None, int | None]] = [(estimator, None, None, None)]
    while waiting:
        part, owner, columns, most = waiting.pop()
        if isinstance(part, Tree | TreePredictor):
            yield part, owner, columns if columns is None or most is None else min(columns, most)
            continue
        if id(part) in seen:
            continue
        seen.add(id(part))
        if len(seen) > MAX_OBJECTS:
            raise ArtifactRejected(f"sklearn: the estimator has more than {MAX_OBJECTS} parts")
        inner: Iterator[object] = iter(())
        if isinstance(part, dict):
            inner = iter(part.values())
        elif isinstance(part, list | tuple | set | frozenset):
            inner = iter(part)
        elif isinstance(part, np.ndarray):
            inner = iter(part.ravel().tolist() if part.dtype.kind == "O" else ())
        elif hasattr(part, "__dict__") and not isinstance(part, type):
            own = vars(part)
            inner = iter(own.values())
            said = own.get("n_features_in_")
            if isinstance(said, int | np.integer):
                owner, columns = part, int(said)
                most = columns if type(part).__name__ in _BOOSTED else most
        waiting.extend((each, owner, columns, most) for each in inner)
