"""What an answer depends on beside the request itself: candidate set, ready versions, tenant, wishes."""

from typing import NamedTuple

from services.domain.model import ModelKey
from services.domain.objects import Choose, ModelVersion, Route
from services.domain.request import InferCall, Preference
from services.domain.service_class import ServiceClass
from services.router.destination import Destination


class Stem(NamedTuple):
    """What is the same for all calls that lead to one candidate set."""

    of_ready: bytes
    """With the versions that are ready."""
    of_all: bytes
    """Without: of an answer that may stand in where none is."""
    shared: bool
    """Whether tenants may have each other's answers."""
    chooses: bool
    kept_of: frozenset[ModelKey]
    """The versions whose answers are kept: those that are ready; where one goes before all others, that one."""


def about_of(under: Route, stem: Stem, call: InferCall, service_class: ServiceClass) -> bytes:
    """What a call's answer depends on beside the candidate set and the request."""
    options = call.options
    whose = b"all" if stem.shared else b"of " + options.tenant.encode()
    wishes = b""
    if (
        options.max_cost_microusd is not None
        or options.min_quality is not None
        or options.zone
        or options.prefer is not Preference.BALANCED
    ):
        told = (options.max_cost_microusd, options.min_quality, options.prefer.value, options.zone)
        wishes = repr(told).encode()
    # What a tier lets the choice spend decides which model it falls on.
    tier = service_class.tier.encode() if stem.chooses else b""
    return framed(under.metadata.name.encode(), whose, wishes, tier)


def stem_of(destination: Destination) -> Stem | None:
    """What is the same for all calls that lead to a candidate set; None if its answers are not to be kept."""
    known = destination.stems
    if not known:
        known.append(_stem(destination))
    return known[0]


def _stem(destination: Destination) -> Stem | None:
    options = destination.options
    if not options or any(not option.model.deterministic or option.version.generation for option in options):
        return None
    ready = [option for option in options if option.hosts]
    chooses = isinstance(destination.choice, Choose)
    who = repr((destination.name, destination.target, chooses)).encode()
    return Stem(
        of_ready=framed(who, *(_identity(option.version) for option in ready)),
        of_all=framed(who),
        shared=all(option.model.shareable_answers for option in options),
        chooses=chooses,
        kept_of=frozenset(option.key for option in (ready if chooses else ready[:1])),
    )


def _identity(version: ModelVersion) -> bytes:
    """What computes: a version that was taken away and made anew under its old name is another one."""
    artifact, backend = version.artifact, version.backend
    files = sorted((name, each.sha256) for name, each in version.files.items())
    sha256 = "" if artifact is None else artifact.sha256
    told = (version.model_key, sha256, files, backend.name, backend.architecture, sorted(backend.options.items()))
    return repr(told).encode()


def framed(*pieces: bytes) -> bytes:
    """Pieces with their lengths, so that no others come to the same."""
    return b"".join([part for piece in pieces for part in (len(piece).to_bytes(4, "big"), piece)])
