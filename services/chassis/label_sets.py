"""How many series a metric may have: the first label sets that come are counted apart, later ones together.

Every label of ours has values that the registry knows, and yet routes times versions times tenants may be more than
whoever scrapes them can bear. Which sets are kept never changes: a series that went and came back would look like a
restart, and the sum over several processes would go backwards.
"""

from collections.abc import Collection, Sequence

OTHER = "(other)"
"""Value of a label whose own value is not counted apart any more."""

MOST = 1000
"""Label sets of one metric that are counted apart."""

ROOM = 4
"""Once those are reached, a quarter as many more for sets without the labels that are given up first."""

Values = tuple[str, ...]


class LabelSets:
    """The label sets of one metric."""

    __slots__ = ("_first", "_kept", "_known", "_labels", "_most", "_partly")

    def __init__(
        self, labels: Sequence[str], *, kept: Collection[str] = (), first: Collection[str] = (), most: int = MOST
    ) -> None:
        """None yet.

        Args:
            labels: Names, in the order of their values.
            kept: Those that have few values whatever comes, and are never given up.
            first: Those that are given up first, such as whose calls they are.
            most: Sets counted apart.
        """
        self._labels, self._most = labels, most
        self._kept = [label in kept for label in labels]
        self._first = [label in first for label in labels]
        self._known: set[Values] = set()
        self._partly: set[Values] = set()

    def admit(self, values: Values) -> Values:
        """The values to count `values` under: their own, or with `OTHER` in place of some, or of all that may be."""
        if values in self._known or not values:
            return values
        if len(self._known) < self._most:
            self._known.add(values)
            return values
        if any(self._first):
            partly = tuple(OTHER if gives_up else value for value, gives_up in zip(values, self._first, strict=True))
            if partly in self._partly:
                return partly
            if len(self._partly) < self._most // ROOM:
                self._partly.add(partly)
                return partly
        return tuple(value if keeps else OTHER for value, keeps in zip(values, self._kept, strict=True))
