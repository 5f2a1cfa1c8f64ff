"""Decide which fault hits which request: reproducibly, for a given share of the requests, all kinds equally often."""

import random
from collections import Counter
from dataclasses import dataclass
from enum import StrEnum

_READS = frozenset({"GET", "HEAD"})


class Fault(StrEnum):
    """A kind of fault that can hit a request."""

    INTERNAL_ERROR = "internal_error"  # 500 InternalError; the server never sees the request
    SLOW_DOWN = "slow_down"  # 503 SlowDown; the server never sees the request
    RESET = "reset"  # the connection is reset (RST); the server never sees the request
    STALL = "stall"  # no answer for some seconds, then the connection is closed; the server never sees the request
    TRUNCATE = "truncate"  # GET only: the connection is closed before the end of the announced body
    LOST_ANSWER = "lost_answer"  # writes only: the server executes the request, then the connection is reset

    def applies_to(self, method: str) -> bool:
        """Whether it can hit a request of this method."""
        if self is Fault.TRUNCATE:
            return method == "GET"
        return self is not Fault.LOST_ANSWER or method not in _READS


@dataclass(frozen=True, kw_only=True)
class Faults:
    """Which faults to inject, and where."""

    share: float
    """Probability of a fault, 0 to 1, independent for each request, so that several in a row happen too."""
    kinds: tuple[Fault, ...] = tuple(Fault)
    """The kinds to inject."""
    methods: frozenset[str] | None = None
    """Hit only requests of these methods; None for all methods."""
    prefix: str = "/"
    """Hit only requests whose path, /bucket/key, starts with this; the path of a listing is its bucket's."""
    max_faults: int | None = None
    """Maximum number of faults, after which all requests pass; None for no maximum."""
    seed: int = 0
    """With the same seed, the n-th matching request gets the same fault."""
    stall_seconds: float = 2.0
    """Duration of a stall, in seconds."""
    max_stalls: int = 3
    """Maximum number of stalls; after that, other kinds of faults replace them."""


class Injection:
    """The faults chosen so far, and the choice of the next one."""

    def __init__(self, faults: Faults) -> None:
        self.faults = faults
        self.counts: Counter[Fault] = Counter()
        """Number of injected faults by kind."""
        self._dealt: Counter[Fault] = Counter()
        self._random = random.Random(faults.seed)

    def deal(self, method: str, path: str) -> Fault | None:
        """The fault for the next request, or None to let it pass."""
        faults = self.faults
        if (faults.methods is not None and method not in faults.methods) or not path.startswith(faults.prefix):
            return None
        hit, tie = self._random.random() < faults.share, self._random.random()
        possible = [
            kind
            for kind in faults.kinds
            if kind.applies_to(method) and not (kind is Fault.STALL and self._dealt[kind] >= faults.max_stalls)
        ]
        spent = faults.max_faults is not None and self._dealt.total() >= faults.max_faults
        if not hit or spent or not possible:
            return None
        fewest = min(self._dealt[kind] for kind in possible)
        rarest = [kind for kind in possible if self._dealt[kind] == fewest]
        kind = rarest[int(tie * len(rarest))]
        self._dealt[kind] += 1
        return kind
