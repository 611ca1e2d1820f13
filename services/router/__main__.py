"""`python -m services.router`."""

import sys

from services.chassis.process import main
from services.router.app import start
from services.router.config import Config

if __name__ == "__main__":
    sys.exit(main("router", Config, start))
