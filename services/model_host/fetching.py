"""Puts together what one host fetches artifacts with, as its settings say."""

import ssl

from services.domain.clock import Clock
from services.model_host.config import Config
from services.model_host.mlflow_source import MlflowSource
from services.model_host.s3_source import S3Source
from services.model_host.sources import FileSource, Places, Source, Sources
from services.model_host.web_source import Patience, WebSource


def sources_of(config: Config, clock: Clock, patience: Patience | None = None) -> Sources:
    """The sources of a host with `config`, patient as ever unless `patience` is given.

    Raises:
        OSError: The file of certificates cannot be read; ssl.SSLError is one.
    """
    patience = patience or Patience()
    tls = ssl.create_default_context()
    if config.ca_file is not None:
        tls.load_verify_locations(config.ca_file)
    places = Places(config.artifact_sources)
    web = WebSource(places, tls=tls, netrc_file=config.netrc_file, patience=patience, clock=clock)
    others: dict[str, Source] = {"https": web, "s3": S3Source(patience=patience, clock=clock)}
    mlflow = MlflowSource(places, web=web, others=others)
    return Sources(places, {**others, "file": FileSource(places), "mlflow": mlflow})
