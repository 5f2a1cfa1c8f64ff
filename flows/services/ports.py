"""The loopback address, and free ports on it."""

import random
import socket
from collections.abc import Collection

HOST = "127.0.0.1"
# Below the range that Linux and macOS give to outgoing connections, so that a stopped service's port stays free.
_PORTS = range(20_000, 32_000)


def is_free(port: int) -> bool:
    """Whether a server could listen on a loopback port."""
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as servers do: closed connections do not count
        try:
            listener.bind((HOST, port))
        except OSError:
            return False
    return True


def free_port(chosen: Collection[int] = ()) -> int:
    """A free loopback port that is not among those already chosen."""
    return next(port for port in random.sample(_PORTS, len(_PORTS)) if port not in chosen and is_free(port))
