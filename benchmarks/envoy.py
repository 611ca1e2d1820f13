"""Envoy as the reference proxy: one listener, one cluster, one worker thread, HTTP/2 on both sides, no logs, no sinks.

It decides and records nothing, as the bare echo pair does not; it shows what a proxy in C++ costs at the same place.
"""

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import psutil
import yaml

from benchmarks.places import BUILD
from benchmarks.servers import running

BINARY = BUILD / "envoy" / "envoy" / "_bin" / "envoy"
PIN = BUILD / "envoy" / "pin"
CONCURRENCY = 1


def envoy_version() -> str | None:
    """The version that `tools/bench_tools.sh` installed; None if it did not."""
    return PIN.read_text().strip().rpartition("==")[2] if BINARY.exists() and PIN.exists() else None


def _address(port: int) -> dict[str, object]:
    return {"socket_address": {"address": "127.0.0.1", "port_value": port}}


def _http2(kind: str) -> dict[str, object]:
    return {
        "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
            "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
            kind: {"http2_protocol_options": {}},
        }
    }


def config(port: int, next_port: int) -> dict[str, object]:
    """Envoy's static configuration: from `port` to `next_port`."""
    manager = {
        "@type": (
            "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
        ),
        "stat_prefix": "bench",
        "codec_type": "HTTP2",
        "generate_request_id": False,
        "route_config": {
            "virtual_hosts": [
                {
                    "name": "all",
                    "domains": ["*"],
                    "routes": [{"match": {"prefix": "/"}, "route": {"cluster": "echo", "timeout": "0s"}}],
                }
            ]
        },
        "http_filters": [
            {
                "name": "envoy.filters.http.router",
                "typed_config": {
                    "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router",
                    "dynamic_stats": False,
                },
            }
        ],
    }
    filters = [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]
    endpoint = {"endpoint": {"address": _address(next_port)}}
    return {
        "static_resources": {
            "listeners": [{"name": "in", "address": _address(port), "filter_chains": [{"filters": filters}]}],
            "clusters": [
                {
                    "name": "echo",
                    "type": "STATIC",
                    "connect_timeout": "1s",
                    "typed_extension_protocol_options": _http2("explicit_http_config"),
                    "load_assignment": {
                        "cluster_name": "echo",
                        "endpoints": [{"lb_endpoints": [endpoint]}],
                    },
                }
            ],
        }
    }


@asynccontextmanager
async def envoy_before_echo(folder: Path, port: int) -> AsyncIterator[dict[str, psutil.Process]]:
    """Envoy on `port`, the native echo on the next."""
    file = folder / "envoy.yaml"
    file.write_text(yaml.safe_dump(config(port, port + 1)))
    flags = ("--concurrency", str(CONCURRENCY), "--disable-hot-restart", "--log-level", "error")
    proxy = (str(BINARY), "-c", str(file), *flags)
    echo = (sys.executable, "-m", "benchmarks.native_echo", "--port", str(port + 1))
    async with running(echo, proxy) as (echoing, proxying):
        yield {"envoy": proxying, "echo": echoing}
