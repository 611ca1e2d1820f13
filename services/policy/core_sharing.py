"""Which processors of a machine each of its hosts keeps to."""

from collections.abc import Sequence


def share_of(index: int, hosts: int, processors: Sequence[int]) -> tuple[int, ...]:
    """The processors of one of several hosts: neighbours, as many for each as can be.

    Args:
        index: Which host, in [0, hosts).
        hosts: How many there are; where they are more than processors, some have the same one.
        processors: Those of the machine, ascending; at least one.
    """
    count = len(processors)
    if hosts >= count:
        return (processors[index % count],)
    return tuple(processors[index * count // hosts : (index + 1) * count // hosts])
