"""`python -m services.resource_manager`."""

import sys

from services.chassis.process import main
from services.resource_manager.app import start
from services.resource_manager.config import Config

if __name__ == "__main__":
    sys.exit(main("resource_manager", Config, start))
