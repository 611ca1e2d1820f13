"""`python -m services.router`."""

import sys

from services.chassis.process import main
from services.router.config import Config
from services.router.workers import start

if __name__ == "__main__":
    sys.exit(main("router", Config, start))
