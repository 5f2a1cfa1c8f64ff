"""What `igpt serve` can be told about its service."""

from dataclasses import dataclass

from pipeline.errors import IgptError

# MLflow's server gives a request up after 60 s; a replica that is replaced first answers what it has.
DRAIN_SECONDS = 75.0
END_SECONDS = DRAIN_SECONDS + 30.0
"""The longest that the end of a service takes."""
_LEAST_AT_ONCE = 16


@dataclass(frozen=True, kw_only=True)
class ServeConfig:
    """The size of a service, and where it listens."""

    host: str = "127.0.0.1"
    """Address to listen on, of every node with a replica; 0.0.0.0: all of the node's."""
    port: int = 5000
    replicas: int = 1
    """Processes that each hold the model."""
    cpus: float = 1.0
    """Cores that a replica computes with, and that it holds on the cluster."""
    batch: int = 32
    """Images that a replica computes at a time; 1: every request by itself."""
    queue: int = 128
    """Requests that wait for a replica, or are just being handed to one, on a node that listens; more are refused."""

    def __post_init__(self) -> None:
        for name, least in (("replicas", 1), ("batch", 1), ("queue", 1), ("port", 1)):
            if getattr(self, name) < least:
                raise IgptError(f"{name} is {getattr(self, name)}: it must be at least {least}")
        if self.port > 65535:
            raise IgptError(f"port is {self.port}: it must be at most 65535")
        if not 0 < self.cpus < float("inf") or (self.cpus > 1 and self.cpus % 1):
            raise IgptError(f"cpus is {self.cpus}: it must be a whole number, or a part of one, above 0")

    @property
    def requests_at_once(self) -> int:
        """Requests that a replica takes in: those that it computes, and as many that it decodes meanwhile.

        So many at least that it has work while Serve's proxy, which asks less and less often, finds that it has room.
        """
        return max(_LEAST_AT_ONCE, 2 * self.batch)
