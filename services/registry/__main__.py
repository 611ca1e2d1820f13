"""`python -m services.registry`."""

import sys

from services.chassis.process import main
from services.registry.app import start
from services.registry.config import Config

if __name__ == "__main__":
    sys.exit(main("registry", Config, start))
