"""What counts as the address of another server."""

import re

_ADDRESS = re.compile(r"(?:[A-Za-z0-9](?:[A-Za-z0-9.-]{0,251}[A-Za-z0-9])?|\[[0-9A-Fa-f:.]+\]):(?P<port>[0-9]{1,5})")


def is_address(text: str) -> bool:
    """Whether `text` is HOST:PORT and nothing else that gRPC would understand, such as `unix:` or a list."""
    found = _ADDRESS.fullmatch(text)
    return found is not None and 0 < int(found["port"]) <= 65535
