"""Messages from training workers to the driver on a real Ray, including the last before a worker ends."""

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


def test_the_last_warning_of_a_worker_is_delivered(mailbox: Any) -> None:

    def warn_and_end(number: int) -> None:
        MailboxListener(mailbox).warn(f"worker {number} is ended")
        os._exit(75)

    ending_worker = ray.remote(num_cpus=1, max_retries=0)(warn_and_end)
    for number in range(8):
        with pytest.raises(ray.exceptions.WorkerCrashedError):
            ray.get(ending_worker.remote(number))
    news: News = ray.get(mailbox.read.remote())
    assert news.warnings == [f"worker {number} is ended" for number in range(8)]


def test_deliver_waits_for_all_messages(mailbox: Any) -> None:
    def send_and_end() -> None:
        listener = MailboxListener(mailbox)
        for step in range(200):
            listener.metrics(step, {"train_loss": 1.0})
        listener.saved(199)
        listener.deliver()
        os._exit(75)

    with pytest.raises(ray.exceptions.WorkerCrashedError):
        ray.get(ray.remote(num_cpus=1, max_retries=0)(send_and_end).remote())
    news: News = ray.get(mailbox.read.remote())
    assert [step for step, _ in news.metrics] == list(range(200)) and news.saved == [199]
