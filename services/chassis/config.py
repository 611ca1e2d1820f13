"""Configuration of a process: a frozen dataclass, filled from flags, environment, file and defaults.

The dataclass is the one place that declares, documents and defaults a setting. Everything wrong
with the values is reported at once, each with where it came from.
"""

import ast
import dataclasses
import difflib
import inspect
import itertools
import math
import re
import sys
import textwrap
import tomllib
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeVar, Union

T = TypeVar("T")

ENV_PREFIX = "MODELYARD_"

EXIT_FAULTS = 2
"""Exit code of a process whose configuration has faults."""

_TRUE = {"true", "yes", "on", "1"}
_FALSE = {"false", "no", "off", "0"}
_CONFIG = "config"
_PLACEHOLDER = {str: "TEXT", int: "N", float: "X", Path: "PATH"}


class ConfigError(Exception):
    """The configuration is not usable."""

    def __init__(self, prog: str, faults: Sequence[str]) -> None:
        """Keep every fault.

        Args:
            prog: The program, as its user would start it.
            faults: One line each.
        """
        super().__init__("; ".join(faults))
        self.prog = prog
        self.faults = tuple(faults)


def exit_with_faults(error: ConfigError) -> int:
    """Print every fault to stderr, and return the exit code for it."""
    for fault in error.faults:
        sys.stderr.write(f"{error.prog}: {fault}\n")
    sys.stderr.write(f"{error.prog}: --help lists what can be set\n")
    return EXIT_FAULTS


@dataclass(frozen=True, slots=True)
class _Field:
    """One setting, as its class declares it."""

    name: str
    kind: Any
    optional: bool
    default: Any
    text: str

    @property
    def flag(self) -> str:
        return "--" + self.name.replace("_", "-")

    @property
    def variable(self) -> str:
        return ENV_PREFIX + self.name.upper()

    @property
    def is_list(self) -> bool:
        return typing.get_origin(self.kind) is tuple


@dataclass(frozen=True, slots=True)
class _Given:
    """A value as it was given, and where."""

    value: Any
    source: str


class _Unfit(Exception):
    """A value that does not fit its field; the text says what would."""


def load(cls: type[T], *, prog: str, argv: Sequence[str], environ: Mapping[str, str]) -> T:
    """Fill `cls`: flag over environment over file over default.

    A field `metrics_port` is `--metrics-port`, `MODELYARD_METRICS_PORT`, and `metrics_port` (or
    `metrics-port`) in the TOML file that `--config` names. A bool is also `--launch` and `--no-launch`; a
    tuple is a comma list, or its flag several times; of an `X | None` the empty text is None. If `cls` has a
    method `faults(self) -> list[str]`, it checks what the values mean together. `--help` prints every
    field with its docstring and ends the process.

    Args:
        cls: A frozen dataclass with fields of str, int, float, bool, Path, tuple[X, ...], Literal, or one of
            these `| None`. A field without default is required.
        prog: How the program is started, for `--help` and messages.
        argv: The arguments after the program's name.
        environ: The environment.

    Raises:
        ConfigError: All that is wrong.
    """
    fields = {field.name: field for field in _fields_of(cls)}
    faults: list[str] = []
    if "--help" in argv or "-h" in argv:
        _print_help(cls, prog, fields)
    flags = _from_flags(fields, argv, faults)
    env = {
        name: _Given(environ[field.variable], f"environment variable {field.variable}")
        for name, field in fields.items()
        if field.variable in environ
    }
    path = flags.pop(_CONFIG, None)
    if path is None and ENV_PREFIX + "CONFIG" in environ:
        path = _Given(environ[ENV_PREFIX + "CONFIG"], f"environment variable {ENV_PREFIX}CONFIG")
    file = {} if path is None else _from_file(fields, path, faults)
    given = {**file, **env, **flags}
    return _build(cls, prog, fields, given, faults)


def _build(cls: type[T], prog: str, fields: Mapping[str, _Field], given: Mapping[str, _Given], faults: list[str]) -> T:
    values: dict[str, Any] = {}
    unfit: set[str] = set()
    for name, field in fields.items():
        if name in given:
            try:
                values[name] = _convert(field, given[name].value)
                continue
            except _Unfit as error:
                faults.append(f"{field.flag}: {error} (from {given[name].source})")
                unfit.add(name)
        if field.default is not dataclasses.MISSING:
            values[name] = field.default
        elif name not in unfit:
            faults.append(f"{field.flag}: required; give it, or set {field.variable}")
            unfit.add(name)
    if not unfit:
        made = cls(**values)
        faults += _faults_of(made, fields, given)
        if not faults:
            return made
    else:
        faults += _faults_beside(cls, fields, given, values, unfit)
    raise ConfigError(prog, faults)


def _faults_of(made: object, fields: Mapping[str, _Field], given: Mapping[str, _Given]) -> list[str]:
    """What the class itself finds wrong, with the source of each field that it names."""
    check = getattr(made, "faults", None)
    found: list[str] = []
    for fault in check() if callable(check) else ():
        sources = [
            f"{fields[name].flag} from {given[name].source if name in given else 'its default'}"
            for name in _named(fault, fields)
        ]
        found.append(f"{fault} ({', '.join(sources)})" if sources else fault)
    return found


def _faults_beside(
    cls: type[Any],
    fields: Mapping[str, _Field],
    given: Mapping[str, _Given],
    values: Mapping[str, Any],
    unfit: set[str],
) -> list[str]:
    """What the class finds wrong with other fields than `unfit`, for which a default or an empty value stands in."""
    empty = {name: () if fields[name].is_list else "" for name in unfit}
    try:
        found = _faults_of(cls(**{**empty, **values}), fields, given)
    except Exception:  # a check may trip over what stands in; the user has faults enough to begin with
        return []
    return [fault for fault in found if (named := _named(fault, fields)) and not unfit.intersection(named)]


def _named(fault: str, fields: Mapping[str, _Field]) -> list[str]:
    """The fields that a fault names, as flag or as attribute."""
    words = set(re.findall(r"[a-z][a-z0-9_]*", fault.replace("-", "_").lower()))
    return [name for name in fields if name in words]


# --- sources -----------------------------------------------------------------------------------


def _from_flags(fields: Mapping[str, _Field], argv: Sequence[str], faults: list[str]) -> dict[str, _Given]:
    found: dict[str, _Given] = {}
    rest = list(argv)
    while rest:
        word = rest.pop(0)
        flag, has_value, value = word.partition("=")
        name = flag[2:].replace("-", "_") if flag.startswith("--") else ""
        negated = fields.get(name.removeprefix("no_")) if name not in fields else None
        field = fields.get(name)
        if negated is not None and negated.kind is bool and not has_value:
            found[negated.name] = _Given(False, f"flag {flag}")
            continue
        if field is None and name != _CONFIG:
            faults.append(_unknown(word, [f.flag for f in fields.values()]))
            if flag.startswith("--") and not has_value and rest and not rest[0].startswith("--"):
                rest.pop(0)  # its value, which is no fault of its own
            continue
        if not has_value and field is not None and field.kind is bool:
            found[name] = _Given(True, f"flag {flag}")
            continue
        if not has_value:
            if not rest or rest[0].startswith("--"):
                faults.append(f"{flag}: needs a value")
                continue
            value = rest.pop(0)
        if field is not None and field.is_list and name in found:
            value = f"{found[name].value},{value}"
        found[name] = _Given(value, f"flag {flag}")
    return found


def _from_file(fields: Mapping[str, _Field], path: _Given, faults: list[str]) -> dict[str, _Given]:
    try:
        with Path(path.value).open("rb") as file:
            content = tomllib.load(file)
    except OSError as error:
        faults.append(f"--config: cannot read {path.value}: {error.strerror} (from {path.source})")
        return {}
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        faults.append(f"--config: {path.value} is not TOML: {error} (from {path.source})")
        return {}
    found: dict[str, _Given] = {}
    for key, value in content.items():
        name = key.replace("-", "_")
        if name in fields:
            found[name] = _Given(value, f"file {path.value}")
        else:
            faults.append(f"{path.value}: {_unknown(key, list(fields))}")
    return found


def _unknown(word: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(word.partition("=")[0], known, n=1)
    return f"{word}: not known" + (f"; {near[0]} is" if near else "")


# --- values ------------------------------------------------------------------------------------


def _convert(field: _Field, value: Any) -> Any:
    if field.optional and value == "":
        return None
    if field.is_list:
        (kind, *_) = typing.get_args(field.kind)
        parts = value if isinstance(value, list) else [part.strip() for part in str(value).split(",") if part.strip()]
        return tuple(_scalar(kind, part) for part in parts)
    return _scalar(field.kind, value)


def _scalar(kind: Any, value: Any) -> Any:
    if typing.get_origin(kind) is Literal:
        return _choice(typing.get_args(kind), value)
    if kind is bool:
        return _bool(value)
    if kind in (int, float):
        return _number(kind, value)
    if not isinstance(value, str):
        raise _Unfit(f"{value!r} is not text")
    if kind not in (str, Path):
        raise TypeError(f"no setting can be of type {kind}")
    return Path(value).expanduser() if kind is Path else value


def _choice(choices: tuple[Any, ...], value: Any) -> Any:
    for choice in choices:
        if value == choice or (isinstance(value, str) and value == str(choice)):
            return choice
    raise _Unfit(f"{value!r} is none of {', '.join(map(str, choices))}")


def _bool(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.lower() in _TRUE | _FALSE:
        return value.lower() in _TRUE
    raise _Unfit(f"{value!r} is neither true nor false")


def _number(kind: type[int] | type[float], value: Any) -> int | float:
    wanted = "a whole number" if kind is int else "a number"
    if (
        isinstance(value, bool)
        or (kind is int and isinstance(value, float))
        or not isinstance(value, str | int | float)
    ):
        raise _Unfit(f"{value!r} is not {wanted}")
    try:
        number = kind(value)
    except (ValueError, OverflowError):
        raise _Unfit(f"{value!r} is not {wanted}") from None
    if not math.isfinite(number):
        raise _Unfit(f"{value!r} is not {wanted}")
    return number


# --- declarations ------------------------------------------------------------------------------


def _fields_of(cls: type[Any]) -> list[_Field]:
    hints = typing.get_type_hints(cls)
    texts = _docstrings(cls)
    found = []
    for field in dataclasses.fields(cls):
        default = field.default
        if default is dataclasses.MISSING and field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        kind, optional = _without_none(hints[field.name])
        found.append(_Field(field.name, kind, optional, default, texts.get(field.name, "")))
    return found


def _without_none(kind: Any) -> tuple[Any, bool]:
    if typing.get_origin(kind) in (Union, types.UnionType):
        kinds = [part for part in typing.get_args(kind) if part is not type(None)]
        if len(kinds) != 1:
            raise TypeError(f"a setting has one type, or one and None, not {kind}")
        return kinds[0], True
    return kind, False


def _docstrings(cls: type[Any]) -> dict[str, str]:
    """The docstring under each field, of `cls` and the dataclasses it extends."""
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if not dataclasses.is_dataclass(base):
            continue
        try:
            tree = ast.parse(textwrap.dedent(inspect.getsource(base)))
        except (OSError, TypeError):
            continue  # no source is there: --help lacks the texts, nothing else
        body = tree.body[0].body if isinstance(tree.body[0], ast.ClassDef) else []
        for field, after in itertools.pairwise(body):
            if not (isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)):
                continue
            if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
                found[field.target.id] = inspect.cleandoc(str(after.value.value))
    return found


def _print_help(cls: type[Any], prog: str, fields: Mapping[str, _Field]) -> NoReturn:
    lines = [f"usage: {prog} [--config FILE] [--NAME VALUE ...]", ""]
    if cls.__doc__ and not cls.__doc__.startswith(f"{cls.__name__}("):
        lines += [inspect.cleandoc(cls.__doc__), ""]
    lines += [
        f"Each setting is a flag, an environment variable ({ENV_PREFIX}NAME), or a key of the TOML file that",
        f"--config (or {ENV_PREFIX}CONFIG) names; the first of these counts.",
        "",
    ]
    for field in fields.values():
        lines.append(f"  {_usage(field)}  [{_default(field)}]")
        lines += [f"      {line}" for line in textwrap.wrap(" ".join(field.text.split()), 94)]
    sys.stdout.write("\n".join(lines) + "\n")
    raise SystemExit(0)


def _usage(field: _Field) -> str:
    if field.kind is bool:
        return f"{field.flag} | --no-{field.flag[2:]}"
    if typing.get_origin(field.kind) is Literal:
        return f"{field.flag} {'|'.join(map(str, typing.get_args(field.kind)))}"
    if field.is_list:
        return f"{field.flag} {_PLACEHOLDER.get(typing.get_args(field.kind)[0], 'VALUE')},..."
    return f"{field.flag} {_PLACEHOLDER[field.kind]}"


def _default(field: _Field) -> str:
    if field.default is dataclasses.MISSING:
        return "required"
    if field.default is None or field.default in ("", ()):
        return "default: none"
    if isinstance(field.default, tuple):
        return f"default: {','.join(map(str, field.default))}"
    return f"default: {str(field.default).lower() if isinstance(field.default, bool) else field.default}"
