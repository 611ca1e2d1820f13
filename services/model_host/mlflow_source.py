"""Artifacts of an MLflow server, asked by its REST API over HTTPS; the mlflow package is not needed.

`mlflow://HOST/models/NAME/VERSION/PATH` is a file of a registered model's version,
`mlflow://HOST/artifacts/PATH` one of those that the server passes on. Where the server names another place, the host
must be allowed to fetch from there too.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlencode, urlsplit

from services.domain.artifact_uri import ArtifactUri, BadUri, parse_uri
from services.domain.errors import ArtifactRejected
from services.model_host.sources import Places, Source, Stream
from services.model_host.web_source import WebSource

ANSWER_BYTES = 1 << 20
"""Most of an answer of the API that is read."""

_FOUND = ("api", "2.0", "mlflow", "model-versions", "get-download-uri")
_PASSED_ON = ("api", "2.0", "mlflow-artifacts", "artifacts")
_PASSES_ON = "mlflow-artifacts"
"""The scheme of what the server passes on itself."""


class MlflowSource:
    """Fetches what MLflow knows of."""

    def __init__(self, places: Places, *, web: WebSource, others: Mapping[str, Source]) -> None:
        """Ask servers by `web`; fetch from `others`, by scheme, what lies elsewhere in `places`."""
        self._places = places
        self._web = web
        self._others = others

    @contextmanager
    def open(self, uri: ArtifactUri) -> Iterator[Stream]:
        """Find out where it lies, and ask for it there."""
        match uri.segments:
            case ("artifacts", _, *_):
                with self._passed_on(uri, uri.segments[1:]) as stream:
                    yield stream
            case ("models", name, version, _, *_):
                with self._of_version(uri, name, version, uri.segments[3:]) as stream:
                    yield stream
            case _:
                raise ArtifactRejected(f"'{uri}' must be mlflow://HOST/models/NAME/VERSION/PATH or .../artifacts/PATH")

    @contextmanager
    def _of_version(self, uri: ArtifactUri, name: str, version: str, path: tuple[str, ...]) -> Iterator[Stream]:
        query = "?" + urlencode({"name": name, "version": version})
        found = self._answer(ArtifactUri(uri.scheme, uri.host, uri.port, _FOUND), query).get("artifact_uri")
        if not isinstance(found, str):
            raise ArtifactRejected(f"{uri.host} does not say where {uri} lies")
        parts = urlsplit(found)
        if parts.scheme == _PASSES_ON and parts.netloc in ("", uri.host, f"{uri.host}:{uri.port}"):
            below = self._parsed(uri, f"mlflow://{uri.host}{parts.path}").segments
            with self._passed_on(uri, (*below, *path)) as stream:
                yield stream
            return
        there = self._parsed(uri, found)
        lies = ArtifactUri(there.scheme, there.host, there.port, (*there.segments, *path))
        if there.scheme not in self._others:
            raise ArtifactRejected(f"{uri} lies at {there.scheme}:, where hosts do not fetch for MLflow")
        self._places.of(lies)
        with self._others[there.scheme].open(lies) as stream:
            yield stream

    @contextmanager
    def _passed_on(self, uri: ArtifactUri, path: tuple[str, ...]) -> Iterator[Stream]:
        with self._web.ask(ArtifactUri(uri.scheme, uri.host, uri.port, (*_PASSED_ON, *path))) as stream:
            yield stream

    def _answer(self, uri: ArtifactUri, query: str) -> dict[str, Any]:
        raw = bytearray()
        with self._web.ask(uri, query) as stream:
            while chunk := stream.read(ANSWER_BYTES):
                raw += chunk
                if len(raw) > ANSWER_BYTES:
                    raise ArtifactRejected(f"{uri.host} says more than {ANSWER_BYTES} bytes")
        try:
            answer = json.loads(raw)
        except (ValueError, RecursionError):
            raise ArtifactRejected(f"{uri.host} does not answer as an MLflow server does") from None
        return answer if isinstance(answer, dict) else {}

    def _parsed(self, uri: ArtifactUri, text: str) -> ArtifactUri:
        try:
            return parse_uri(text)
        except BadUri as error:
            raise ArtifactRejected(f"{uri.host} says that {uri} lies where it cannot: {error}") from None
