"""Whether the Hugging Face hub can be reached at all, asked once and quickly.

Without this, the first hub call on a machine without network retries for half a minute before it gives up.
"""

import os
import socket
from functools import cache
from urllib.parse import urlsplit


@cache
def hub_reachable() -> bool:
    """Return whether the hub's name resolves (or a proxy would resolve it), and offline mode is not switched on."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    if os.environ.get("HTTPS_PROXY") or os.environ.get("https_proxy"):
        return True
    host = urlsplit(constants.ENDPOINT).hostname
    try:
        socket.getaddrinfo(host, 443)
    except OSError:
        return False
    return True
