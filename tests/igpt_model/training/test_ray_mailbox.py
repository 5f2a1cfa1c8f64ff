"""What training workers tell the driver, on a real Ray: also what they said last."""

import os
from typing import Any

import pytest
import ray

from igpt_model.training.ray_mailbox import Mailbox, MailboxListener, News

pytestmark = pytest.mark.usefixtures("own_ray")


@pytest.fixture
def mailbox() -> Any:
    started = ray.remote(num_cpus=0)(Mailbox).remote()
    ray.get(started.read.remote())
    return started


def test_the_last_words_of_a_worker_arrive(mailbox: Any) -> None:

    def speak_and_end(number: int) -> None:
        MailboxListener(mailbox).warn(f"worker {number} is ended")
        os._exit(75)

    speaker = ray.remote(num_cpus=1, max_retries=0)(speak_and_end)
    for number in range(8):
        with pytest.raises(ray.exceptions.WorkerCrashedError):
            ray.get(speaker.remote(number))
    news: News = ray.get(mailbox.read.remote())
    assert news.warnings == [f"worker {number} is ended" for number in range(8)]


def test_delivery_waits_for_all_that_was_told(mailbox: Any) -> None:
    def tell_and_end() -> None:
        listener = MailboxListener(mailbox)
        for step in range(200):
            listener.metrics(step, {"train_loss": 1.0})
        listener.saved(199)
        listener.deliver()
        os._exit(75)

    with pytest.raises(ray.exceptions.WorkerCrashedError):
        ray.get(ray.remote(num_cpus=1, max_retries=0)(tell_and_end).remote())
    news: News = ray.get(mailbox.read.remote())
    assert [step for step, _ in news.metrics] == list(range(200)) and news.saved == [199]
