"""A port is free when a server could listen on it."""

import socket

from flows.services.ports import _PORTS, HOST, free_port, is_free


def test_a_port_is_free_until_something_listens_on_it() -> None:
    port = free_port()
    assert port in _PORTS and is_free(port)
    with socket.socket() as listener:
        listener.bind((HOST, port))
        listener.listen()
        assert not is_free(port)
    assert is_free(port)


def test_no_port_is_given_twice() -> None:
    chosen: set[int] = set()
    for _ in range(50):
        port = free_port(chosen)
        assert port not in chosen
        chosen.add(port)
    left = _PORTS[0]
    others = set(_PORTS) - {left}
    if is_free(left):
        assert free_port(others) == left
