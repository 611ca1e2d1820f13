"""Callers of a version that generates: what they ask, when, and what is measured of the pieces as they come."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from examples.tensors import infer_request, texts
from modelyard.host.v1 import host_pb2, host_pb2_grpc
from modelyard.type.v1 import model_pb2
from services.domain.clock import SystemClock
from services.domain.rng import KeyedRng

PROMPTS = (
    "The capital of France is",
    "Once upon a time there was a small dog who",
    "To make a good cup of coffee, you first have to",
    "The three most important inventions of the last century are",
    "In the year 1969 two men went to the moon. They",
    "A list of colours: red, green, blue,",
    "Water boils at a hundred degrees, but on a mountain it",
    "def fibonacci(n):",
)
TIMEOUT_S = 120.0
_CLOCK = SystemClock()


@dataclass(slots=True)
class Heard:
    """What was measured of some answers, in seconds."""

    first_s: list[float] = field(default_factory=list)
    """From the intended time of a request to its first piece."""
    gaps_s: list[float] = field(default_factory=list)
    """From one piece to the next."""
    whole_s: list[float] = field(default_factory=list)
    """From the intended time of a request to the end of its answer."""
    tokens: int = 0
    took_s: float = 0.0

    @property
    def tokens_per_s(self) -> float:
        """Of all answers together."""
        return self.tokens / self.took_s


@dataclass(frozen=True, slots=True)
class Arrival:
    """One request to come."""

    at_s: float
    tokens: int
    prompt: str


class Callers:
    """Callers of one version on one host."""

    def __init__(self, stub: "host_pb2_grpc.ModelHostServiceAsyncStub", key: model_pb2.ModelKey) -> None:
        """Ask `key`."""
        self._stub = stub
        self._key = key

    async def ask(self, prompt: str, tokens: int, intended_s: float, heard: Heard) -> None:
        """Ask once, and note when the pieces came."""
        request = infer_request(self._key.model, {"text": texts(prompt)})
        request.parameters["max_tokens"].int64_param = tokens
        last_s: float | None = None
        call = self._stub.ExecuteStream(
            host_pb2.ExecuteStreamRequest(key=self._key, request=request), timeout=TIMEOUT_S
        )
        async for message in call:
            now_s = _CLOCK.now_s()
            if last_s is None:
                heard.first_s.append(now_s - intended_s)
            else:
                heard.gaps_s.append(now_s - last_s)
            last_s = now_s
            if message.HasField("totals"):
                heard.tokens += message.totals.tokens
                heard.whole_s.append(now_s - intended_s)

    async def closed_loop(self, callers: int, *, tokens: int, rounds: int) -> Heard:
        """So many callers, each of whom asks again as soon as it has its answer."""
        heard = Heard()

        async def caller(number: int) -> None:
            for turn in range(rounds):
                await self.ask(PROMPTS[(number + turn) % len(PROMPTS)], tokens, _CLOCK.now_s(), heard)

        began_s = _CLOCK.now_s()
        await asyncio.gather(*(caller(number) for number in range(callers)))
        heard.took_s = _CLOCK.now_s() - began_s
        return heard

    async def as_they_come(self, arrivals: Sequence[Arrival]) -> Heard:
        """Each request at its time: the host lets it in between two steps."""
        heard = Heard()
        began_s = _CLOCK.now_s()

        async def one(arrival: Arrival) -> None:
            await asyncio.sleep(max(0.0, began_s + arrival.at_s - _CLOCK.now_s()))
            await self.ask(arrival.prompt, arrival.tokens, began_s + arrival.at_s, heard)

        await asyncio.gather(*map(one, arrivals))
        heard.took_s = _CLOCK.now_s() - began_s
        return heard

    async def in_batches(self, arrivals: Sequence[Arrival], *, size: int) -> Heard:
        """The same requests in static batches: those that have come when the last batch has ended, all of it.

        A sequence that ends before the others of its batch costs no more from there on, which is better than what
        frameworks without iteration-level batching do.
        """
        heard = Heard()
        began_s = _CLOCK.now_s()
        waiting = list(arrivals)
        while waiting:
            now_s = _CLOCK.now_s() - began_s
            batch = [arrival for arrival in waiting if arrival.at_s <= now_s][:size]
            if not batch:
                await asyncio.sleep(waiting[0].at_s - now_s)
                continue
            waiting = waiting[len(batch) :]
            await asyncio.gather(*(self.ask(each.prompt, each.tokens, began_s + each.at_s, heard) for each in batch))
        heard.took_s = _CLOCK.now_s() - began_s
        return heard


def arrivals(count: int, *, mean_gap_s: float, least: int, most: int, seed: int) -> list[Arrival]:
    """Requests at random times that ask for answers of random lengths; the same for the same seed."""
    rng = KeyedRng(seed)
    at_s = 0.0
    made = []
    for number in range(count):
        at_s += -mean_gap_s * float(np.log(1.0 - rng.unit(str(number), "gap")))
        tokens = least + int((most - least + 1) * rng.unit(str(number), "length"))
        made.append(Arrival(at_s, tokens, PROMPTS[number % len(PROMPTS)]))
    return made
