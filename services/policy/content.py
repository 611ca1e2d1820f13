"""Which candidates a call may go to by what it is about: task, modality, labels, domain, complexity, size."""

from collections.abc import Sequence

from services.domain.model import TensorMeta
from services.domain.objects import Model
from services.domain.request import RouteOptions
from services.domain.strategies import CandidateRule
from services.policy.complexity import size_of

TASK, MODALITY = "task", "modality"
"""Labels of a call that a model has to agree with, if it says of itself what these are."""


def unfit(model: Model, rules: Sequence[CandidateRule], options: RouteOptions, inputs: Sequence[TensorMeta]) -> str:
    """Why calls like this one do not go to a model.

    Args:
        model: The candidate.
        rules: Those of the route; of several for the model one has to hold.
        options: The call's labels, domain and complexity.
        inputs: Its inputs.

    Returns:
        The reason; empty if they may.
    """
    labels = dict(options.labels)
    for name, own in ((TASK, model.task), (MODALITY, model.modality)):
        asked = labels.get(name)
        if asked and own and asked != own:
            return f"its {name} is '{own}', the call's '{asked}'"
    whys = [_broken(rule, model, labels, options, inputs) for rule in rules if rule.model == model.metadata.name]
    return "" if not whys or "" in whys else "; ".join(whys)


def _broken(
    rule: CandidateRule, model: Model, labels: dict[str, str], options: RouteOptions, inputs: Sequence[TensorMeta]
) -> str:
    for key, value in rule.labels.items():
        if labels.get(key) != value and not (not value and key in labels):
            return f"it takes calls labelled {key}={value}" if value else f"it takes calls labelled {key}"
    for name, allowed, asked in (
        ("domain", rule.domains, options.domain),
        ("complexity", rule.complexities, options.complexity),
    ):
        if allowed and asked not in allowed:
            return f"it takes calls of {name} {', '.join(allowed)}"
    elements = size_of(inputs, model.inputs)[0] if inputs else 0
    if elements < rule.min_elements:
        return f"it takes calls of at least {rule.min_elements} elements a row, not of {elements}"
    if rule.max_elements and elements > rule.max_elements:
        return f"it takes calls of at most {rule.max_elements} elements a row, not of {elements}"
    return ""
