"""How long the steps of a graph take that come after each one."""

from collections.abc import Mapping, Sequence


def behind_s(needs: Mapping[str, Sequence[str]], takes_s: Mapping[str, float]) -> dict[str, float]:
    """What the longest way from the end of each step to the end of all is expected to take.

    Args:
        needs: For each step, those whose outputs it waits for; without circles.
        takes_s: Seconds that each step is expected to take.
    """
    found = dict.fromkeys(needs, 0.0)
    waiting = {step: len(set(before)) for step, before in needs.items()}
    ready = [step for step, count in waiting.items() if count == 0]
    order: list[str] = []
    while ready:
        step = ready.pop()
        order.append(step)
        for after, before in needs.items():
            if step in before:
                waiting[after] -= 1
                if waiting[after] == 0:
                    ready.append(after)
    for step in reversed(order):
        for before in needs[step]:
            found[before] = max(found[before], takes_s[step] + found[step])
    return found
