"""Names that need each other: an order in which none comes before what it needs, and the circles that have none."""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple


class Order(NamedTuple):
    """An order of names."""

    names: tuple[str, ...]
    """Each after everything that it needs, circles apart."""
    circles: Mapping[str, tuple[str, ...]]
    """By name that stands in a circle: the circle, its first name again at the end."""


def ordered(needs: Mapping[str, Sequence[str]]) -> Order:
    """Order names by what they need; needs that are no names themselves do not count.

    Of circles that share names, at least one is found.
    """
    names: list[str] = []
    circles: dict[str, tuple[str, ...]] = {}
    done: dict[str, bool] = {}
    """False while a name is on the way."""
    for start in needs:
        if start in done:
            continue
        # By hand and not by recursion: a chain may be as long as there are names.
        way: list[tuple[str, Iterator[str]]] = [(start, iter(needs[start]))]
        done[start] = False
        while way:
            name, rest = way[-1]
            inner = next(rest, None)
            if inner is None:
                done[name] = True
                names.append(name)
                way.pop()
            elif inner in needs and inner not in done:
                done[inner] = False
                way.append((inner, iter(needs[inner])))
            elif done.get(inner) is False:
                on_way = [each for each, _ in way]
                circle = (*on_way[on_way.index(inner) :], inner)
                for each in circle:
                    circles.setdefault(each, circle)
    return Order(tuple(names), circles)
