"""The state of a training worker: its initial weights and the average of the weights."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from igpt_model.config import PretrainConfig
from igpt_model.runs import checkpoint
from igpt_model.training.loop import train
from igpt_model.worker import Worker
from pipeline.dataset.snapshot import Snapshot
from pipeline.errors import IgptError
from pipeline.store import objects
from tests.igpt_model.training.test_loop import Recorder


def test_the_average_of_the_weights_is_what_is_saved(data: Snapshot, config: PretrainConfig, tmp_path: Path) -> None:
    weights_of = {}
    for name, decay in (("plain", None), ("averaged", 0.8)):
        run = str(tmp_path / name)
        train(config.with_fields(ema_decay=decay), data, run, Worker(), Recorder())
        weights_of[name] = load_file(Path(checkpoint.folder_of(run, 30)) / "weights-00000.safetensors")
    plain, averaged = weights_of["plain"], weights_of["averaged"]
    assert not torch.equal(plain["weights.head.weight"], averaged["weights.head.weight"])
    # Keeping an average does not change the trained weights.
    trained = {name.replace("trained.", "weights."): weight for name, weight in averaged.items() if "trained" in name}
    assert trained.keys() == plain.keys()
    assert all(torch.equal(trained[name], weight) for name, weight in plain.items())
    with pytest.raises(IgptError, match="keeps an average"):
        train(config.with_fields(steps=40), data, str(tmp_path / "averaged"), Worker(), Recorder())
    assert objects.exists(str(tmp_path / "averaged" / "result.json"))


@pytest.mark.parametrize(("begun", "now"), [("adam", "muon"), ("muon", "adam")])
def test_a_checkpoint_of_the_other_optimizer_is_refused(
    begun: str, now: str, data: Snapshot, config: PretrainConfig, tmp_path: Path
) -> None:
    run = str(tmp_path / "run")
    config = config.with_fields(steps=10, checkpoint_every=5, optim=begun)
    train(config, data, run, Worker(), Recorder())
    before = sorted(objects.list_files(run), key=lambda file: file.url)
    with pytest.raises(IgptError, match=f"is of optim {begun} and the config has {now}; set optim to {begun}"):
        train(config.with_fields(steps=20, optim=now), data, run, Worker(), Recorder())
    assert sorted(objects.list_files(run), key=lambda file: file.url) == before
