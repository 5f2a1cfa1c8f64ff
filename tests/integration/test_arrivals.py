"""A night after images have arrived: other held-out images, and the gate judges both models on them."""

import json

import pytest
import yaml

from flows.services.local_stack import Stack
from igpt_model.registry.client import Registry
from igpt_model.registry.gate import BITS, SPLITS
from pipeline.store import objects
from tests.integration.conftest import igpt, refresh_config

# Two whole refreshes: nothing breaks, but it takes as long as a fault.
pytestmark = [pytest.mark.services, pytest.mark.faults]


def test_after_an_arrival_the_champion_is_measured_on_the_new_held_out_images(
    digits: str, stack: Stack, tmp_path_factory: pytest.TempPathFactory
) -> None:
    raw = "s3://raw/arrivals"
    files = sorted(file.url for file in objects.list_files(digits))
    first, later = files[:-60], files[-60:]

    def arrive(urls: list[str]) -> None:
        for url in urls:
            objects.write_bytes(objects.join(raw, url.removeprefix(f"{digits}/")), objects.read_bytes(url))

    arrive([url for number, url in enumerate(files) if url in first and number % 3 == 0])
    config = refresh_config(raw, "arrivals")
    config["pretrain"] |= {"steps": 30, "warmup_steps": 5, "sample_every": 0}
    config["promotion"] = {"min_bits_gain": 0.0, "min_accuracy_gain": -1.0}
    path = tmp_path_factory.mktemp("config") / "refresh.yaml"
    path.write_text(yaml.safe_dump(config))
    assert igpt("refresh", "--config", str(path)).code == 0
    arrive(later)
    config["pretrain"]["steps"] = 90  # a better model than yesterday's
    path.write_text(yaml.safe_dump(config))
    second = igpt("refresh", "--config", str(path))
    assert second.code == 0, second.out + second.err
    registry = Registry(stack.mlflow_url)
    yesterday, today = registry.find("arrivals/1"), registry.find("arrivals/2")
    assert yesterday.tags[SPLITS] != today.tags[SPLITS]
    assert today.aliases == ("candidate", "champion"), today.tags["igpt.promotion"]
    compared = json.loads(today.tags["igpt.promotion_numbers"])
    # The same program gives the candidate the loss that its training ended with, and the champion one on these images.
    assert compared[BITS] == pytest.approx(float(today.tags[BITS]), abs=2e-5)
    evaluated = {
        version.number: igpt("evaluate", version.uri, "dataset=s3://datasets/arrivals", "split=validation", "--json")
        for version in (yesterday, today)
    }
    assert [answer.code for answer in evaluated.values()] == [0, 0], evaluated[1].err
    bits = {number: json.loads(answer.out)["bits_per_pixel"] for number, answer in evaluated.items()}
    assert bits[1] == pytest.approx(compared[f"champion.{BITS}"], abs=1e-5) != float(yesterday.tags[BITS])
    assert bits[2] == pytest.approx(compared[BITS], abs=1e-5)
    kept = [file.url for file in objects.list_files("s3://datasets/arrivals-measured")]
    assert len([url for url in kept if "loss-validation" in url]) == 2, "the gate's results are found"
    on_test = igpt("evaluate", "models:/arrivals@champion", "dataset=s3://datasets/arrivals", "split=test")
    assert on_test.code == 0 and "models:/arrivals/2" in on_test.out, on_test.err
