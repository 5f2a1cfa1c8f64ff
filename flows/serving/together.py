"""Computes the requests of many threads in batches. While one batch is computed, requests gather for the next.

So batches grow with the load, and a request that comes alone does not wait for others.
"""

import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class _Waiting:
    request: Any
    images: int
    key: str
    """Requests with the same key can be computed together."""
    answer: Future[Any] = field(default_factory=Future)


class Together:
    """A registered model, as MLflow calls it from many threads, whose passes one thread makes, one after the other."""

    def __init__(self, model: Any, batch: int, observe: Callable[[int, str], None]) -> None:
        """`batch`: images in a pass, unless one request has more. `observe` is told the images of a pass and its task.

        A model of a version that was registered before models could answer several requests makes a pass for each.
        """
        self._model, self._batch, self._observe = model, batch, observe
        self._can_answer_several = hasattr(model, "prepare") and hasattr(model, "answer")
        self._waiting: deque[_Waiting] = deque()
        self._lock = threading.Lock()
        self._thread = ThreadPoolExecutor(1, "passes")

    def predict(self, model_input: Any, params: dict[str, Any] | None = None) -> Any:
        """As the model's, and with its errors; waits for the pass that this request is in."""
        if not self._can_answer_several:
            return self._thread.submit(self._model.predict, model_input, params=params).result()
        request = self._model.prepare(model_input, params)
        images = request.settings["samples"] if request.pictures is None else len(request.pictures)
        waiting = _Waiting(request=request, images=images, key=repr(sorted(request.settings.items())))
        with self._lock:
            self._waiting.append(waiting)
        # One for each request, so that none is left; those that find nothing to do are many when batches are large.
        self._thread.submit(self._make_a_pass)
        return waiting.answer.result()

    def _make_a_pass(self) -> None:
        """Answer the request that waits longest, and those that fit into its pass."""
        chosen = self._choose()
        if not chosen:
            return
        self._observe(sum(waiting.images for waiting in chosen), chosen[0].request.settings["task"])
        try:
            answers = self._model.answer([waiting.request for waiting in chosen])
        except Exception as error:  # noqa: BLE001 (each request gets its own error, whatever it is)
            if len(chosen) == 1:
                chosen[0].answer.set_exception(error)
            else:
                self._answer_alone(chosen)
            return
        for waiting, answer in zip(chosen, answers, strict=True):
            waiting.answer.set_result(answer)

    def _answer_alone(self, chosen: Sequence[_Waiting]) -> None:
        """Answer each of several requests whose pass failed: no request fails for another."""
        for waiting in chosen:
            try:
                waiting.answer.set_result(self._model.answer([waiting.request])[0])
            except Exception as error:  # noqa: BLE001 (as above)
                waiting.answer.set_exception(error)

    def _choose(self) -> list[_Waiting]:
        """The requests of the next pass, the oldest first; the others wait on in their order."""
        with self._lock:
            chosen: list[_Waiting] = []
            others: deque[_Waiting] = deque()
            room = self._batch
            while self._waiting:
                waiting = self._waiting.popleft()
                if not chosen or (waiting.key == chosen[0].key and waiting.images <= room):
                    chosen.append(waiting)
                    room -= waiting.images
                else:
                    others.append(waiting)
            self._waiting = others
            return chosen
