"""Which orders a host takes: from whom, of what, and how often."""

from dataclasses import dataclass

from services.domain.errors import ArtifactRejected, Fault, InvalidRequest, StaleFencingToken
from services.domain.host import DeviceKind
from services.domain.model import ModelKey
from services.domain.objects import Model, ModelVersion
from services.domain.validation import object_faults

REMEMBERED = 1024
"""Unloads kept by their decision id."""

_FIXED = ("artifact", "backend", "files", "generation", "max_batch_size")


@dataclass(frozen=True, slots=True)
class LoadOrder:
    """An order to load."""

    model: Model
    version: ModelVersion
    decision_id: str
    fencing_token: int


class Fence:
    """Keeps out a leader that has lost its place: its token is lower than one seen."""

    def __init__(self) -> None:
        """See no token yet."""
        self._highest = 0

    def pass_through(self, token: int) -> None:
        """Let the holder of `token` act.

        Raises:
            StaleFencingToken: A higher one was seen.
        """
        if token < self._highest:
            raise StaleFencingToken(
                f"fencing token {token} is lower than {self._highest}, which this host has seen: "
                "another resource manager leads",
                metadata={"highest": str(self._highest)},
            )
        self._highest = token


class Unloads:
    """Unloads seen lately, so that one that comes twice does not undo a load in between."""

    def __init__(self) -> None:
        """See none yet."""
        self._seen: dict[tuple[ModelKey, str], None] = {}

    def repeated(self, key: ModelKey, decision_id: str) -> bool:
        """Whether this one came before; from now on it did. One without an id never repeats."""
        if not decision_id:
            return False
        if (key, decision_id) in self._seen:
            return True
        self._seen[(key, decision_id)] = None
        if len(self._seen) > REMEMBERED:
            del self._seen[next(iter(self._seen))]
        return False


def check_load(order: LoadOrder, *, device_kind: DeviceKind, trusts_artifacts: bool) -> None:
    """Refuse what this host must not load.

    Raises:
        InvalidRequest: The objects are not valid, do not belong together, or need another device.
        ArtifactRejected: The version runs code of its artifact, and this host does not trust it.
    """
    model, version = order.model, order.version
    faults = [Fault(f"model.{fault.path}", fault.message) for fault in object_faults(model)]
    faults += [Fault(f"version.{fault.path}", fault.message) for fault in object_faults(version)]
    if version.metadata.name != model.metadata.name:
        text = f"is of '{version.metadata.name}', the model is '{model.metadata.name}'"
        faults.append(Fault("version.metadata.name", text))
    if version.device_kind not in (None, device_kind):
        text = f"{version.device_kind.value} is needed, this host has {device_kind.value}"
        faults.append(Fault("version.model_version.resources.device_kind", text))
    if faults:
        raise InvalidRequest.of(faults)
    if version.backend.executes_code and not trusts_artifacts:
        raise ArtifactRejected(f"{version.model_key} runs code of its artifact, and this host does not trust artifacts")


def check_same(have: ModelVersion, want: ModelVersion) -> None:
    """A version never changes; one that did must not be served under the same name.

    Raises:
        InvalidRequest: `want` differs from `have` in what makes its answers.
    """
    changed = [name for name in _FIXED if getattr(have, name) != getattr(want, name)]
    if changed:
        text = f"{have.model_key} is here with another one; unload it first"
        raise InvalidRequest.of([Fault(f"version.model_version.{name}", text) for name in changed])
