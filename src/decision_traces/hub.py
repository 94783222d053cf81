"""Whether the Hugging Face hub can be reached at all, asked once and quickly.

Without this, the first hub call on a machine without network retries for half a minute before it gives up.
"""

import os
import socket
from functools import cache
from typing import Final
from urllib.parse import urlsplit

_PROXIES: Final = ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")
_PATIENCE_S: Final = 3.0


@cache
def hub_reachable() -> bool:
    """Return whether the hub answers (or a proxy is there to ask it), and offline mode is not switched on."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    if any(os.environ.get(name) for name in _PROXIES):
        return True
    address = urlsplit(constants.ENDPOINT)
    try:
        socket.create_connection((address.hostname, address.port or 443), timeout=_PATIENCE_S).close()
    except OSError:
        return False
    return True
