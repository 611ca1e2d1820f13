"""What is known of a model host: its record, which changes seldom, and its load, which changes all the time."""

import enum
from dataclasses import dataclass
from typing import NamedTuple

from services.domain.model import ModelKey, ModelState
from services.domain.service_class import OPEN


class DeviceKind(enum.Enum):
    """What computes."""

    CPU = "CPU"
    CUDA = "CUDA"


@dataclass(frozen=True, slots=True)
class Device:
    """The device of a host; `memory_bytes` is what models may take in all."""

    kind: DeviceKind
    name: str
    memory_bytes: int
    used_bytes: int = 0


@dataclass(frozen=True, slots=True)
class HostedModel:
    """One version on one host."""

    key: ModelKey
    state: ModelState
    message: str = ""
    memory_bytes: int = 0
    load_time_s: float = 0.0


@dataclass(frozen=True, slots=True)
class HostRecord:
    """What a host says about itself to the registry."""

    host_id: str
    address: str
    pool: str
    zone: str
    device: Device
    models: tuple[HostedModel, ...] = ()
    draining: bool = False
    pid: int = 0
    trusts_artifacts: bool = False
    cordoned: bool = False
    """Whether an operator wants no further versions on it; the registry says so, not the host."""

    def hosted(self, key: ModelKey) -> HostedModel | None:
        """The version's entry, if the host has one."""
        for hosted in self.models:
            if hosted.key == key:
                return hosted
        return None


class ModelLoad(NamedTuple):
    """Load of one version on one host: t(b) = base_s + per_item_s * b."""

    key: ModelKey
    queued: int
    running: int
    batch_cap: int
    base_s: float
    per_item_s: float
    queued_up_to: tuple[int, ...] = ()
    """Calls that compute, and those that wait up to each band; empty if all that wait are of the default one."""
    absent_s: float = 0.0
    """How long a call waits until the version is in memory; 0 if it is."""


class HostLoad(NamedTuple):
    """Load of one host at `sequence`; an older report is ignored."""

    host_id: str
    sequence: int
    models: tuple[ModelLoad, ...]
    used_bytes: int
    utilization: float
    draining: bool
    cutoff: int = OPEN
    """Calls of classes from this level on are refused; see `ServiceClass.level`."""
