"""What names, labels and notes may hold, and how a text that may hold anything is shown in a fault."""

import re
from collections.abc import Mapping

from services.domain.errors import Fault

MAX_LABELS = 64
"""Most labels, and most annotations, of one object."""

MAX_LABEL_LENGTH = 128
MAX_ANNOTATION_LENGTH = 4096
MAX_NAME_LENGTH = 128
"""Longest name within an object: of a tensor, an output, a dependency."""

MAX_LINE_LENGTH = 256

_DNS_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_LABEL_KEY = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9_./-]*[A-Za-z0-9])?")
_SHOWN = 64


def is_dns_label(name: str) -> bool:
    """Whether `name` may name an object."""
    return _DNS_LABEL.fullmatch(name) is not None


def shown(text: str) -> str:
    """`text` in quotes for a message: one line, no longer than a name, with control characters spelt out."""
    cut = text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
    spelt = "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in cut)
    return f"'{spelt}'"


def name_faults(name: str, path: str) -> list[Fault]:
    """Whether `name` is a DNS label."""
    if is_dns_label(name):
        return []
    rule = "must be 1 to 63 lower-case letters, digits and hyphens, not at either end a hyphen"
    return [Fault(path, f"{shown(name)} {rule}")]


def line_faults(text: str, path: str, *, most: int = MAX_LINE_LENGTH, needed: bool = False) -> list[Fault]:
    """Whether `text` is one line of printable characters; it may be empty unless it is `needed`."""
    if needed and not text:
        return [Fault(path, "must not be empty")]
    if len(text) > most:
        return [Fault(path, f"has {len(text)} characters, at most {most}")]
    if not text.isprintable():
        return [Fault(path, f"{shown(text)} must be one line of printable characters")]
    return []


def note_faults(text: str, path: str, *, most: int | None = None) -> list[Fault]:
    """Whether `text` is printable, apart from line breaks and tabs; without `most` its object bounds its length."""
    if most is not None and len(text) > most:
        return [Fault(path, f"has {len(text)} characters, at most {most}")]
    if not text.replace("\n", "").replace("\t", "").isprintable():
        return [Fault(path, f"{shown(text)} must be printable, apart from line breaks and tabs")]
    return []


def label_faults(labels: Mapping[str, str], path: str) -> list[Fault]:
    """Whether there are not too many, and each is well formed."""
    if len(labels) > MAX_LABELS:
        return [too_many(len(labels), MAX_LABELS, path)]
    faults = []
    for key, value in sorted(labels.items()):
        faults += _key_faults(key, path)
        faults += line_faults(value, f"{path}[{_in_path(key)}]", most=MAX_LABEL_LENGTH)
    return faults


def annotation_faults(annotations: Mapping[str, str], path: str) -> list[Fault]:
    """Whether there are not too many, and each is well formed."""
    if len(annotations) > MAX_LABELS:
        return [too_many(len(annotations), MAX_LABELS, path)]
    faults = []
    for key, value in sorted(annotations.items()):
        faults += _key_faults(key, path)
        faults += note_faults(value, f"{path}[{_in_path(key)}]", most=MAX_ANNOTATION_LENGTH)
    return faults


def too_many(count: int, most: int, path: str) -> Fault:
    """The fault of a list or map that is too long."""
    return Fault(path, f"has {count} entries, at most {most}")


def _key_faults(key: str, path: str) -> list[Fault]:
    if len(key) <= MAX_LABEL_LENGTH and _LABEL_KEY.fullmatch(key) and ".." not in key:
        return []
    rule = (
        f"must be 1 to {MAX_LABEL_LENGTH} letters, digits, '-', '_', '.' and '/', at either end a letter or a digit, "
        "without '..'"
    )
    return [Fault(path, f"the key {shown(key)} {rule}")]


def _in_path(key: str) -> str:
    return shown(key)[1:-1]
