"""A model host whose device is made slow or broken while it serves; for benchmarks and tests of the router alone.

    python -m benchmarks.router_host FILE [flags of a model host]

FILE holds one word, read before each batch: a number, by which the time of a batch of the identity is multiplied, or
`fail`, and every batch fails at once. The product has no such switch: it is planted here, in this process, before it
starts.
"""

import os
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):  # as services.model_host does
    os.environ.setdefault(name, "1")

from services.chassis.process import main as process_main  # noqa: E402
from services.domain.clock import SystemClock  # noqa: E402
from services.model_host.app import start  # noqa: E402
from services.model_host.backends.identity import IdentityModel  # noqa: E402
from services.model_host.config import Config  # noqa: E402
from services.model_host.tensors import NDArray  # noqa: E402

SOUND = "1"
FAIL = "fail"

Predict = Callable[[IdentityModel, Mapping[str, NDArray]], dict[str, NDArray]]


class Broken(Exception):
    """What every batch of a device that fails ends with."""


def planted(predict: Predict, file: Path, *, now_s: Callable[[], float], wait: Callable[[float], object]) -> Predict:
    """`predict` as the file says: the same, so many times slower, or failing.

    Args:
        predict: Of the product.
        file: Read before each batch.
        now_s: Monotonic seconds.
        wait: Sleeps for so many seconds.
    """

    def predicted(model: IdentityModel, inputs: Mapping[str, NDArray]) -> dict[str, NDArray]:
        state = file.read_text().strip()
        if state == FAIL:
            raise Broken("told to fail")
        began_s = now_s()
        answer = predict(model, inputs)
        if state != SOUND:
            wait((float(state) - 1.0) * (now_s() - began_s))
        return answer

    return predicted


def main() -> int:
    """Plant it, and be a model host."""
    file = Path(sys.argv.pop(1))
    predict = planted(IdentityModel.predict, file, now_s=SystemClock().now_s, wait=threading.Event().wait)
    setattr(IdentityModel, "predict", predict)  # noqa: B010 - mypy refuses an assignment to a method
    return process_main("model_host", Config, start)


if __name__ == "__main__":
    sys.exit(main())
