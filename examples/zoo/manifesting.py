"""Fills what was found and measured into the manifests, which are otherwise written by hand."""

import json
import re
from collections.abc import Mapping
from pathlib import Path

from modelyard.registry.v1 import objects_pb2
from yardctl import manifests

TEMPLATES = Path(__file__).parent / "manifests"
_PLACE = re.compile(r"\$\{([a-z0-9-]+\.[a-z0-9_]+)\}")


class TemplateError(Exception):
    """Templates and facts do not fit; the text says where."""


Value = str | int | float
"""What stands in a place."""


def render(template: str, facts: Mapping[str, Value]) -> str:
    """A template with every `${name.fact}` replaced.

    Args:
        template: YAML text.
        facts: Value by `name.fact`.

    Raises:
        TemplateError: A place has no fact.
    """
    missing = sorted(set(_PLACE.findall(template)) - facts.keys())
    if missing:
        raise TemplateError(f"nothing is known of {', '.join(missing)}")
    return _PLACE.sub(lambda place: _as_yaml(facts[place[1]]), template)


def _as_yaml(value: Value) -> str:
    # JSON strings are YAML strings. Without quotes some digests would be numbers.
    return json.dumps(value, ensure_ascii=False)


def render_all(facts: Mapping[str, Value], folder: Path) -> list[Path]:
    """Render every template into `folder`, in place of what is there.

    Raises:
        TemplateError: A place has no fact.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rendered = {path.name: render(path.read_text(encoding="utf-8"), facts) for path in sorted(TEMPLATES.glob("*.yaml"))}
    for stale in folder.glob("*.yaml"):
        if stale.name not in rendered:
            stale.unlink()
    for name, text in rendered.items():
        (folder / name).write_text(text, encoding="utf-8")
    return [folder / name for name in rendered]


def objects_in(folder: Path) -> list[objects_pb2.Object]:
    """The objects of the manifests in `folder`.

    Raises:
        services.domain.errors.InvalidRequest: A manifest is wrong.
    """
    return [document.object for document in manifests.load([folder])]
