"""Which fault hits which request: reproducible by count, a given share of the requests, all kinds equally often."""

import random
from collections import Counter
from dataclasses import dataclass
from enum import StrEnum

_READS = frozenset({"GET", "HEAD"})


class Fault(StrEnum):
    """What may happen to a request."""

    INTERNAL_ERROR = "internal_error"  # 500 InternalError; the server never sees the request
    SLOW_DOWN = "slow_down"  # 503 SlowDown; the server never sees the request
    RESET = "reset"  # the connection is reset (RST); the server never sees the request
    STALL = "stall"  # nothing for some seconds, then the connection is closed; the server never sees the request
    TRUNCATE = "truncate"  # GET only: the connection is closed before all of the announced body has come
    LOST_ANSWER = "lost_answer"  # writes only: the server has carried the request out, then the connection is reset

    def applies_to(self, method: str) -> bool:
        """Tell whether a request of this method can suffer it."""
        if self is Fault.TRUNCATE:
            return method == "GET"
        return self is not Fault.LOST_ANSWER or method not in _READS


@dataclass(frozen=True, kw_only=True)
class Faults:
    """What to inject."""

    share: float
    """Share of the requests that suffer a fault, 0 to 1; drawn independently for each, so runs of faults happen."""
    kinds: tuple[Fault, ...] = tuple(Fault)
    """The kinds to inject."""
    methods: frozenset[str] | None = None
    """Only requests of these methods; None: of any."""
    prefix: str = "/"
    """Only requests whose path, /bucket/key, begins like this; the path of a listing is its bucket's."""
    max_faults: int | None = None
    """How many faults there are at most, then everything passes: a burst. None: no end."""
    seed: int = 0
    """Two plans of the same seed treat the n-th request that they may touch alike."""
    stall_seconds: float = 2.0
    """How long a stall lasts, in seconds."""
    max_stalls: int = 3
    """How many stalls there are at most; the other kinds take their place."""


class Injection:
    """Faults as they are dealt out."""

    def __init__(self, faults: Faults) -> None:
        self.faults = faults
        self.counts: Counter[Fault] = Counter()
        """What was injected so far, by kind."""
        self._dealt: Counter[Fault] = Counter()
        self._random = random.Random(faults.seed)

    def deal(self, method: str, path: str) -> Fault | None:
        """The fault of the next request, or None when it shall pass."""
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
