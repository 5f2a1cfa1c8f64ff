"""Which pictures and reports in MLflow go when images are erased, and which stay."""

from pathlib import Path

import numpy as np
from mlflow import MlflowClient

from igpt_model.tracking import erased_pictures
from igpt_model.tracking.runs import CONTENT_TAG

PICTURES = (
    *(
        "samples.png",
        "loss.png",
        "completions.png",
        "probe.png",
        "confusion.png",
        "neighbours.png",
        "rows.neighbours.png",
    ),
    *("faces.neighbours.png", "faces.rows.neighbours.png", "faces.probe.png", "other.neighbours.png", "report.html"),
    "features_by_loss.png",
)


def test_pictures_with_images_go_and_curves_and_samples_stay(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    client = MlflowClient(uri)
    experiment = client.create_experiment("nightly", artifact_location=(tmp_path / "artifacts").as_uri())
    tags = {
        "trained on it": {"igpt.dataset": "s3://datasets/faces", CONTENT_TAG: "old"},
        "deleted": {"igpt.dataset": "s3://datasets/faces", CONTENT_TAG: "old"},
        "another content": {"igpt.dataset": "s3://datasets/faces", CONTENT_TAG: "other"},
        "another dataset": {"igpt.dataset": "s3://datasets/cats", CONTENT_TAG: "old"},
        "no training": {},
    }
    ids = {name: client.create_run(experiment, tags=of).info.run_id for name, of in tags.items()}
    for run in ids.values():
        for name in PICTURES:
            (tmp_path / name).write_bytes(b"of " + run.encode())
            client.log_artifact(run, str(tmp_path / name))
        for kind in ("samples", "completions"):
            client.log_image(run, np.zeros((4, 4, 3), np.uint8), key=kind, step=1, synchronous=True)
    client.delete_run(ids["deleted"])
    asked: list[tuple[bytes, bool]] = []

    def shows(html: bytes, trained_on_it: bool) -> bool:
        asked.append((html, trained_on_it))
        return ids["no training"].encode() in html

    for file in list(erased_pictures.find(uri, "s3://datasets/faces", {"old", "older"}, shows)):
        erased_pictures.remove(uri, file)
    left = {
        name: {path.name.partition("+")[0] for path in (tmp_path / "artifacts" / run / "artifacts").rglob("*.*")}
        for name, run in ids.items()
    }
    every = {*PICTURES, "samples", "completions"}
    of_probes = {"faces.neighbours.png", "faces.rows.neighbours.png"}
    shown = {"completions.png", "completions", "neighbours.png", "rows.neighbours.png", "other.neighbours.png"}
    for name in ("trained on it", "deleted"):
        assert left[name] == every - shown - of_probes
    for name in ("another content", "another dataset"):
        assert left[name] == every - of_probes
    assert left["no training"] == every - of_probes - {"report.html"}
    assert sorted(trained for _, trained in asked) == [False] * 3 + [True] * 2
    assert list(erased_pictures.find(uri, "s3://datasets/faces", {"old"}, lambda *_: False)) == []
