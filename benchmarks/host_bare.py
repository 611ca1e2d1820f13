"""A model called in a loop, with nothing around it: what the device could do at most.

    python -m benchmarks.host_bare MODEL [--seconds S] [--quick]

Loads a model of the zoo with the host's own backend, in a process of its own, and calls it on ready batches of each
power of two. Prints a line of JSON: rows a second by rows of a batch.
"""

import argparse
import json
import os
from pathlib import Path
from urllib.parse import unquote

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):  # as services.model_host does
    os.environ.setdefault(name, "1")

import numpy as np  # noqa: E402

from benchmarks.host_models import Subject, real  # noqa: E402
from services.chassis.object_codec import object_from  # noqa: E402
from services.domain.clock import SystemClock  # noqa: E402
from services.domain.objects import Artifact, Model, ModelVersion  # noqa: E402
from services.model_host.backends.base import GenerativeModel, LoadedModel  # noqa: E402
from services.model_host.devices.choosing import choose  # noqa: E402
from services.model_host.loading import backends  # noqa: E402

_CLOCK = SystemClock()


def loaded(subject: Subject) -> LoadedModel:
    """The model, as a host would have it."""
    model, version = object_from(subject.model), object_from(subject.version)
    assert isinstance(model, Model)
    assert isinstance(version, ModelVersion)
    assert version.artifact is not None
    device = choose("cpu", 0)
    backend = backends(trusts_artifacts=False, torch_threads=1, onnx_threads=1)[version.backend.name]
    backend.prepare(device)
    files = {name: _path(item) for name, item in version.files.items()}
    found = backend.load(_path(version.artifact), files, version, model, device)
    assert not isinstance(found, GenerativeModel)
    return found


def rows_per_s(model: LoadedModel, subject: Subject, rows: int, seconds: float) -> float:
    """Rows a second in batches of `rows`, of the requests in turn."""
    inputs = subject.inputs
    batches = [
        {
            name: np.concatenate([inputs[(start + offset) % len(inputs)][name] for offset in range(rows)])
            for name in inputs[0]
        }
        for start in range(0, max(len(inputs), rows), rows)
    ]
    model.predict(batches[0])
    model.predict(batches[-1])
    count, began_s = 0, _CLOCK.now_s()
    while (took_s := _CLOCK.now_s() - began_s) < seconds:
        model.predict(batches[count % len(batches)])
        count += 1
    return count * rows / took_s


def _path(artifact: Artifact) -> Path:
    return Path(unquote(artifact.uri.removeprefix("file:")))


def main() -> None:
    """Call it at every size, and print the rates."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--seconds", type=float, default=1.0, help="at each size")
    parser.add_argument("--quick", action="store_true", help="the least, the largest, and one in between")
    arguments = parser.parse_args()
    subject = real()[arguments.model]
    model = loaded(subject)
    largest = subject.version.model_version.batching.max_batch_size
    sizes = [1 << power for power in range(largest.bit_length()) if 1 << power <= largest]
    if arguments.quick:
        sizes = sorted({sizes[0], sizes[len(sizes) // 2], sizes[-1]})
    print(json.dumps({size: round(rows_per_s(model, subject, size, arguments.seconds), 1) for size in sizes}))


if __name__ == "__main__":
    main()
