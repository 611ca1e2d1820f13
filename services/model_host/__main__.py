"""`python -m services.model_host`."""

import os
import sys

# Read when numpy and OpenMP are first imported. Hosts share a machine's cores by running several
# processes; the threads of one call would only wait for those of others. torch has its own setting.
for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(name, "1")

from services.chassis.process import main  # noqa: E402
from services.model_host.app import start  # noqa: E402
from services.model_host.config import Config  # noqa: E402

if __name__ == "__main__":
    sys.exit(main("model_host", Config, start))
