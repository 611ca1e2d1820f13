"""Placement scenarios as text: commands, `----`, and what is decided.

Commands: `host ID [mib=] [zone=] [pool=] [device=] [trusted] [absent|leaving|listed]`, `gone ID`,
`version NAME [replicas=] [mib=] [pool=] [device=] [code]`, `forget NAME`, `has ID NAME STATE [measured=]`,
`lost ID NAME`, `failed ID NAME COUNT resting|rested MESSAGE`, `place` (decide), `obey` (decide, then do it at once).
`GOLDEN_UPDATE=1` writes what is decided into the files; read the difference before committing it.
"""

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from services.domain.host import DeviceKind, HostedModel
from services.domain.model import ModelKey, ModelState
from services.domain.objects import ModelVersion
from services.policy.fitting import Failure, Site, Standing
from services.policy.placement import Assignment, place
from tests.fakes.objects import MIB, a_host, a_version

SCENARIOS = sorted((Path(__file__).parent / "placement").glob("*.txt"))


class Yard:
    """What the commands of one scenario have built up."""

    def __init__(self) -> None:
        self.sites: dict[str, Site] = {}
        self.versions: dict[ModelKey, ModelVersion] = {}
        self.measured: dict[tuple[ModelKey, DeviceKind], int] = {}

    def run(self, line: str) -> list[str]:
        """Carry out one command; what it decides, if it decides."""
        verb, *words = line.split()
        options = dict(word.split("=", 1) for word in words if "=" in word)
        plain = [word for word in words if "=" not in word]
        match verb:
            case "host":
                self._host(plain, options)
            case "gone":
                del self.sites[plain[0]]
            case "version":
                self._version(plain, options)
            case "forget":
                del self.versions[ModelKey(plain[0], "1.0.0")]
            case "has":
                self._has(plain[0], ModelKey(plain[1], "1.0.0"), ModelState(plain[2]), options)
            case "lost":
                self._put(plain[0], ModelKey(plain[1], "1.0.0"), None)
            case "failed":
                site = self.sites[plain[0]]
                failure = Failure(int(plain[2]), " ".join(plain[4:]), plain[3] == "resting")
                failures = {**site.failures, ModelKey(plain[1], "1.0.0"): failure}
                self.sites[plain[0]] = replace(site, failures=failures)
            case "place" | "obey":
                decided = place(self.versions.values(), list(self.sites.values()), self.measured)
                if verb == "obey":
                    self._obey(decided)
                return _text(decided)
            case _:
                raise ValueError(f"no such command: {line}")
        return []

    def _host(self, plain: list[str], options: dict[str, str]) -> None:
        before = self.sites.get(plain[0])
        standing = next((Standing(word.upper()) for word in plain[1:] if word != "trusted"), Standing.LISTED)
        if before is not None:
            self.sites[plain[0]] = replace(before, standing=standing)
            return
        record = a_host(
            plain[0],
            mib=int(options.get("mib", "100")),
            zone=options.get("zone", ""),
            pool=options.get("pool", "cpu"),
            kind=DeviceKind(options.get("device", "CPU")),
            trusts_artifacts="trusted" in plain,
        )
        self.sites[plain[0]] = Site(record, standing)

    def _version(self, plain: list[str], options: dict[str, str]) -> None:
        version = a_version(
            plain[0],
            replicas=int(options.get("replicas", "1")),
            mib=int(options.get("mib", "1")),
            pool=options.get("pool", ""),
            device_kind=DeviceKind(options["device"]) if "device" in options else None,
            executes_code="code" in plain,
        )
        self.versions[version.model_key] = version

    def _has(self, host_id: str, key: ModelKey, state: ModelState, options: dict[str, str]) -> None:
        measured = int(options.get("measured", "0")) * MIB
        self._put(host_id, key, HostedModel(key, state, "", measured))
        if measured:
            self.measured[key, self.sites[host_id].record.device.kind] = measured

    def _put(self, host_id: str, key: ModelKey, entry: HostedModel | None) -> None:
        site = self.sites[host_id]
        others = tuple(one for one in site.record.models if one.key != key)
        self.sites[host_id] = replace(
            site, record=replace(site.record, models=others if entry is None else (*others, entry))
        )

    def _obey(self, decided: Assignment) -> None:
        for unload in decided.unloads:
            self._put(unload.host_id, unload.key, None)
        for load in decided.loads:
            self._put(load.host_id, load.key, HostedModel(load.key, ModelState.READY))


def _text(decided: Assignment) -> list[str]:
    lines = [f"load {order.key.model} on {order.host_id}: {order.reason}" for order in decided.loads]
    lines += [f"unload {order.key.model} from {order.host_id}: {order.reason}" for order in decided.unloads]
    lines += [f"lacks {lacking.missing} of {lacking.key.model}: {lacking.reason}" for lacking in decided.unplaced]
    return lines or ["nothing to do"]


def _blocks(text: str) -> Iterator[tuple[list[str], list[str]]]:
    """Commands and expectations, block by block; blocks are parted by an empty line."""
    for block in text.strip().split("\n\n"):
        head, _, expected = block.partition("----")
        yield head.strip("\n").split("\n"), expected.strip("\n").split("\n")


@pytest.mark.parametrize("path", SCENARIOS, ids=lambda path: path.stem)
def test_placement_decides_as_written(path: Path) -> None:
    yard, written, decided = Yard(), [], []
    text = path.read_text()

    for commands, expected in _blocks(text):
        said = [line for command in commands if not command.startswith("#") for line in yard.run(command)]
        written.append("\n".join([*commands, "----", *expected]))
        decided.append("\n".join([*commands, "----", *said]))

    if os.environ.get("GOLDEN_UPDATE"):
        path.write_text("\n\n".join(decided) + "\n")
    else:
        assert "\n\n".join(decided) == "\n\n".join(written)


def test_there_are_scenarios() -> None:
    assert len(SCENARIOS) >= 5
