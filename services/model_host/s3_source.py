"""Artifacts from object stores that speak S3, by way of fsspec.

Which store, and who asks, is set as for every other program: `AWS_ENDPOINT_URL_S3`, `AWS_SHARED_CREDENTIALS_FILE`,
`AWS_PROFILE` and the rest; `FSSPEC_S3_ANON=true` asks as nobody.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from services.domain.artifact_uri import ArtifactUri
from services.domain.clock import Clock
from services.domain.errors import ArtifactRejected
from services.model_host.sources import Stream
from services.model_host.web_source import Patience

BLOCK_BYTES = 8 << 20
"""Asked for at a time."""


class S3Source:
    """Fetches from buckets."""

    def __init__(self, *, patience: Patience, clock: Clock) -> None:
        """Fetch; what it takes is imported at the first use."""
        self._patience = patience
        self._clock = clock

    @contextmanager
    def open(self, uri: ArtifactUri) -> Iterator[Stream]:
        """Ask for the object."""
        try:
            import s3fs  # noqa: PLC0415
        except ImportError:
            raise ArtifactRejected(f"{uri} needs what is not installed here: pip install 'modelyard[s3]'") from None
        settings = {
            "connect_timeout": self._patience.connect_s,
            "read_timeout": self._patience.idle_s,
            "retries": {"max_attempts": 1},
        }
        try:
            # Of its own for each artifact: credentials may have changed, and sizes must not be remembered.
            store = s3fs.S3FileSystem(config_kwargs=settings, use_listings_cache=False, skip_instance_cache=True)
            file = store.open(f"{uri.host}{uri.path}", "rb", block_size=BLOCK_BYTES, cache_type="readahead")
        except Exception as error:  # botocore's errors have no base that is worth naming
            raise _refused(uri, error) from None
        began_s = self._clock.now_s()
        given_bytes = 0

        def read(most: int) -> bytes:
            nonlocal given_bytes
            try:
                chunk: bytes = file.read(most)
            except Exception as error:
                raise _refused(uri, error) from None
            given_bytes += len(chunk)
            took_s = self._clock.now_s() - began_s
            if took_s > self._patience.idle_s and given_bytes < self._patience.least_bytes_per_s * took_s:
                raise ArtifactRejected(f"the store is too slow: {given_bytes} bytes of {uri} in {took_s:.0f} s")
            return chunk

        with file:
            yield Stream(read, int(file.size))


def _refused(uri: ArtifactUri, error: Exception) -> ArtifactRejected:
    said = " ".join(str(error).split())[:300]
    return ArtifactRejected(f"cannot fetch {uri}: {type(error).__name__}: {said}")
