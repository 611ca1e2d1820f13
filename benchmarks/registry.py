"""What a registry's size costs: applies, reads, cold starts, fan-out and the way to a router, by objects stored.

Runs etcd, a registry and a router as a mesh does. Writes its part of the page and a record, and ends with one line of
JSON: the figures by name. `--quick` leaves the largest size out, and writes into `build/bench`.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

import psutil
import uvloop

from benchmarks import registry_report
from benchmarks.conditions import conditions_now
from benchmarks.figures import rounded
from benchmarks.measuring import machine_cpu_s
from benchmarks.places import BUILD, FOLDER
from benchmarks.registry_figures import Figures, label, over_all
from benchmarks.registry_measuring import BATCH, Filled, Watchers, own_cpu_s, routed, started
from benchmarks.registry_yard import Yard
from benchmarks.servers import free_base_ports
from services.domain.clock import SystemClock
from yardctl.parts import REGISTRY, ROUTER

SIZES = (1_000, 10_000, 100_000)
WATCHERS = 1_000
REPETITIONS = 5
PAUSE_S = 0.05
"""Rest after each of many applies, so that one does not wait for what the one before has left to do."""

_CLOCK = SystemClock()


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


class Run:
    """One run, size by size."""

    def __init__(self, yard: Yard, *, watchers: int, repetitions: int) -> None:
        """Measure on `yard`; a change of many objects so many times."""
        self._yard = yard
        self._filled = Filled(yard)
        self._watchers = watchers
        self._repetitions = repetitions
        self.figures: Figures = {}

    async def size(self, count: int) -> None:
        """Grow to `count` objects and measure there."""
        filled, at, figures = self._filled, label(count), self.figures
        began_s = _CLOCK.now_s()
        grown = await filled.grow(count)
        _tell(f"{count:,} objects: there after {_CLOCK.now_s() - began_s:.1f} s")
        await filled.change(BATCH)  # warms up
        many = await filled.changes(BATCH, self._repetitions)
        one = await filled.changes(1, 4 * self._repetitions)
        gets, misses = await filled.gets(100), await filled.misses(self._repetitions)
        first, pages = await filled.first_pages(self._repetitions), await filled.pages(max(2, min(20, count // 500)))
        figures |= {
            f"apply_1000_at_{at}_ms": many.ms(0.5),
            f"apply_1000_at_{at}_cpu_ms": many.cpu_ms,
            f"create_1000_at_{at}_ms": grown.ms(0.5),
            f"apply_1_at_{at}_ms": one.ms(0.5),
            f"apply_1_at_{at}_cpu_ms": one.cpu_ms,
            f"get_{at}_p50_ms": gets.ms(0.5),
            f"get_missing_{at}_ms": misses.ms(0.5),
            f"list_first_page_{at}_ms": first.ms(0.5),
            f"list_page_{at}_ms": pages.ms(0.5),
            f"etcd_{at}_mb": await self._yard.etcd_bytes() / 1e6,
        }
        self._say(at)
        await self._cold(at)
        await self._router(at)

    async def fan_out(self) -> None:
        """Measure many watchers, at the size reached."""
        revision = await self._yard.apply(self._filled.edited(1))
        readers = Watchers(self._watchers)
        async with readers.up(self._yard, revision):
            await readers.time(self._filled, 2, PAUSE_S)  # warms up
            before_s = own_cpu_s()
            heard = await readers.time(self._filled, 6 * self._repetitions, 4 * PAUSE_S)
            client_ms = 1e3 * (own_cpu_s() - before_s) / len(heard.seconds)
        self.figures |= {
            f"fanout_{self._watchers}_p50_ms": heard.ms(0.5),
            f"fanout_{self._watchers}_p99_ms": heard.ms(0.99),
            "fanout_registry_cpu_ms": heard.cpu_ms,
            "fanout_readers_cpu_ms": client_ms,
        }
        self._say("fanout")

    async def _cold(self, at: str) -> None:
        await self._yard.end(REGISTRY)
        cold = await started(self._yard, REGISTRY)
        self.figures |= {
            f"registry_cold_start_{at}_s": cold.seconds,
            f"registry_cold_start_{at}_cpu_s": cold.cpu_s,
            f"registry_rss_{at}_mb": cold.rss_mb,
        }
        self._say("registry")

    async def _router(self, at: str) -> None:
        cold = await started(self._yard, ROUTER)
        self.figures |= {
            f"router_cold_start_{at}_s": cold.seconds,
            f"router_cold_start_{at}_cpu_s": cold.cpu_s,
            f"router_rss_{at}_mb": cold.rss_mb,
        }
        times = await routed(self._filled, at, 20 * self._repetitions, PAUSE_S)
        self.figures |= {
            f"apply_to_route_{at}_p50_ms": times.from_answer.ms(0.5),
            f"apply_to_route_{at}_p99_ms": times.from_answer.ms(0.99),
            f"send_to_route_{at}_p50_ms": times.from_send.ms(0.5),
            f"send_to_route_{at}_p99_ms": times.from_send.ms(0.99),
        }
        await self._yard.end(ROUTER)
        self._say("route")

    def _say(self, what: str) -> None:
        found = {name: round(value, 2) for name, value in self.figures.items() if what in name}
        _tell("  " + "  ".join(f"{name} {value}" for name, value in found.items()))


async def run(arguments: argparse.Namespace) -> dict[str, float]:
    """Bring all up, measure, write; returns the figures by name."""
    sizes = tuple(arguments.sizes)
    began_s, machine_s, self_s = _CLOCK.now_s(), machine_cpu_s(), own_cpu_s()
    with tempfile.TemporaryDirectory(prefix="modelyard-registry-") as name:
        (port,) = free_base_ports(1)
        async with Yard(Path(name) / "yard", port) as yard:
            found = Run(yard, watchers=arguments.watchers, repetitions=arguments.repetitions)
            for count in sizes:
                await found.size(count)
            await found.fan_out()
            yard_s = yard.cpu_s()
    took_s = _CLOCK.now_s() - began_s
    others_s = machine_cpu_s() - machine_s - (own_cpu_s() - self_s) - yard_s
    figures = found.figures | over_all(found.figures, sizes)
    conditions = conditions_now(
        generator="grpc.aio",
        lead="aio",
        repetitions=arguments.repetitions,
        seconds=0.0,
        quick=arguments.quick,
        others_share=max(0.0, others_s) / took_s / (psutil.cpu_count() or 1),
    )
    registry_report.write(
        arguments.out,
        conditions=conditions,
        figures=figures,
        sizes=sizes,
        watchers=arguments.watchers,
        seconds=took_s,
    )
    return {name: rounded(value) for name, value in figures.items()}


def main() -> None:
    """Measure, write, print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="without the largest size")
    parser.add_argument("--sizes", type=int, nargs="+", help=f"objects, growing; default: {' '.join(map(str, SIZES))}")
    parser.add_argument("--watchers", type=int, default=WATCHERS, help="of the fan-out")
    parser.add_argument("--repetitions", type=int, default=REPETITIONS, help="of a change of 1,000 objects")
    parser.add_argument("--out", type=Path, help="folder to write into; default: benchmarks; quick: build/bench")
    arguments = parser.parse_args()
    arguments.sizes = sorted(arguments.sizes or (SIZES[:-1] if arguments.quick else SIZES))
    arguments.out = arguments.out or (BUILD if arguments.quick else FOLDER)
    print(json.dumps(uvloop.run(run(arguments))))


if __name__ == "__main__":
    main()
