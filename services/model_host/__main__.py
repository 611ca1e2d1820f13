"""`python -m services.model_host`."""

import sys

from services.chassis.process import main
from services.model_host.app import start
from services.model_host.config import Config

if __name__ == "__main__":
    sys.exit(main("model_host", Config, start))
