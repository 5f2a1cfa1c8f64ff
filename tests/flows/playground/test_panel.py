"""What a tab says: how far all its models are together, and whom it waits for."""

from collections.abc import Iterator

import numpy as np
import pytest
from nicegui import Client, ui
from nicegui.page import page

from flows.playground.facts import Facts
from flows.playground.model_process import ModelProcess
from flows.playground.panel import PURPOSES, Panel, Served
from igpt_model.model.config import ModelConfig


def model(name: str) -> Served:
    config = ModelConfig(layers=1, width=8, heads=1, resolution=4, colours=4)
    facts = Facts(
        name=name,
        config=config,
        classes=(),
        palette_K3=np.zeros((4, 3), np.uint8),
        classifies=False,
        is_watched=True,
        rows=(),
        loss_nats=None,
    )
    return Served(process=ModelProcess(name), facts=facts)


@pytest.fixture(autouse=True)
def client() -> Iterator[Client]:
    with Client(page("/")) as opened:
        yield opened


async def start(panel: Panel) -> None:
    raise AssertionError(panel)


def panel_of(*models: Served, purpose: int = 1) -> Panel:
    return Panel(PURPOSES[purpose], models, on_start=start, on_stop=lambda: None, on_use=lambda _: None)


def the(client: Client, kind: type) -> list[ui.element]:
    return [element for element in client.elements.values() if isinstance(element, kind)]


def test_the_bar_is_of_all_models_together(client: Client) -> None:
    one, other = model("one"), model("other")
    panel = panel_of(one, other)
    (bar,) = the(client, ui.linear_progress)
    shown = []
    for of, part in ((one, 0.5), (other, 0.1), (one, 1.0), (other, 0.2), (other, 1.0)):
        panel.tell_progress(of, part)
        shown.append(bar.value)  # type: ignore[attr-defined]
    assert shown == [0.25, 0.3, 0.55, 0.6, 1.0]
    panel.begin()
    panel.tell_progress(other, 0.2)
    assert bar.value == 0.1  # type: ignore[attr-defined]


def test_it_says_that_another_tab_is_at_work_and_when_no_more(client: Client) -> None:
    waiting, busy = panel_of(model("one")), panel_of(model("one"), purpose=0)

    def statuses() -> list[str]:
        return [label.text for label in the(client, ui.label) if label.props.get("role") == "status"]  # type: ignore[attr-defined]

    assert statuses() == ["", "Choose a picture first."]
    waiting.tell_busy(busy)
    assert statuses()[0] == "Your other tab, Complete, is at work: wait for it, or stop it there."
    for panel in (waiting, busy):
        panel.tell_free()
    assert statuses() == ["", "Choose a picture first."]
