"""`keep_columns` from Parquet, the label file and WebDataset JSON into the index, and how they follow the source."""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.build.build import BuildResult, build
from pipeline.config import DatasetConfig
from pipeline.dataset import snapshot
from pipeline.errors import IgptError
from pipeline.images import decode
from pipeline.inspect.verify import verify
from pipeline.typed_config import config_file
from tests.conftest import write_tar

pytestmark = pytest.mark.usefixtures("without_cluster")


def images_of(config: DatasetConfig) -> dict[str, bytes]:
    return {str(path.relative_to(config.raw)): path.read_bytes() for path in sorted(Path(config.raw).rglob("*.*"))}


def parquet(config: DatasetConfig, folder: Path) -> DatasetConfig:
    rows = [
        {"image": {"bytes": data, "path": None}, "owner": name[0], "year": 2000 + number}
        for number, (name, data) in enumerate(images_of(config).items())
    ]
    (folder / "parquet").mkdir()
    pq.write_table(pa.Table.from_pylist(rows), folder / "parquet" / "images.parquet", row_group_size=40)
    return replace(config, raw=str(folder / "parquet"))


def csv(config: DatasetConfig, folder: Path) -> DatasetConfig:
    lines = [f"{name},x,{name[0]},{2000 + number}\n" for number, name in enumerate(images_of(config))]
    (folder / "labels.csv").write_text("file_name,label,owner,year\n" + "".join(lines))
    return replace(config, labels=str(folder / "labels.csv"))


def webdataset(config: DatasetConfig, folder: Path) -> DatasetConfig:
    members: dict[str, bytes] = {}
    for number, (name, data) in enumerate(images_of(config).items()):
        sample, _, extension = name.replace("/", "-").rpartition(".")
        members[f"{sample}.{extension}"] = data
        members[f"{sample}.json"] = json.dumps({"owner": name[0], "year": 2000 + number}).encode()
    (folder / "tars").mkdir()
    write_tar(folder / "tars" / "a.tar", members)
    return replace(config, raw=str(folder / "tars"))


@dataclass(frozen=True, kw_only=True)
class Rows:
    owners: list[str | None]
    years: list[int | None]
    types: set[str]


def kept(result: BuildResult) -> Rows:
    tables = [pq.read_table(Path(result.snapshot.dataset) / shard.index_path) for shard in result.snapshot.shards]
    return Rows(
        owners=sorted(owner for table in tables for owner in table["owner"].to_pylist()),
        years=sorted(year for table in tables for year in table["year"].to_pylist()),
        types={str(table.schema.field(name).type) for table in tables for name in ("owner", "year")},
    )


@pytest.mark.parametrize("write", [parquet, csv, webdataset], ids=lambda write: write.__name__)
def test_columns_come_typed_into_the_index(
    config: DatasetConfig, tmp_path: Path, write: Callable[[DatasetConfig, Path], DatasetConfig]
) -> None:
    source = replace(write(config, tmp_path), keep_columns=("owner", "year"))
    result = build(source)
    found = kept(result)
    assert found.owners == sorted("d" * 20 + "f" * 40 + "t" * 40)
    assert found.years == list(range(2000, 2100))
    assert found.types == {"string", "int64"}
    assert verify(result.snapshot) == [] and build(source).unchanged


def test_other_columns_write_the_indexes_anew_and_leave_the_shards(
    config: DatasetConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = csv(config, tmp_path)
    plain = build(source)
    monkeypatch.setattr(decode, "decode", None)  # nothing is decoded
    with_columns = build(replace(source, keep_columns=("owner", "year")))
    assert with_columns.snapshot.content_digest == plain.snapshot.content_digest
    assert with_columns.planned.changed_config == ("keep_columns",)
    assert kept(with_columns).years == list(range(2000, 2100)) and verify(with_columns.snapshot) == []
    # Another value rewrites the index of its image.
    labels = tmp_path / "labels.csv"
    labels.write_text(labels.read_text().replace(",2007\n", ",1907\n"))
    changed = build(replace(source, keep_columns=("owner", "year")))
    assert changed.planned.plan is not None and changed.planned.plan.changed_images == 1
    assert kept(changed).years[0] == 1907
    assert changed.snapshot.content_digest == plain.snapshot.content_digest
    without = build(source)
    assert without.snapshot.content_digest == plain.snapshot.content_digest
    assert "owner" not in pq.read_schema(Path(config.dataset) / without.snapshot.shards[0].index_path).names


def test_a_column_that_nothing_has_is_named(config: DatasetConfig, tmp_path: Path) -> None:
    with pytest.raises(IgptError, match="no image has a value of licence, which keep_columns names"):
        build(replace(csv(config, tmp_path), keep_columns=("owner", "licence")))


@pytest.mark.parametrize(
    ("text", "columns"), [("owner,year", ("owner", "year")), ("[owner]", ("owner",)), ("owner", ("owner",)), ("[]", ())]
)
def test_columns_are_given_as_a_list_or_with_commas(text: str, columns: tuple[str, ...]) -> None:
    config = config_file.load(DatasetConfig, None, ["raw=r", "dataset=d", f"keep_columns={text}"])
    assert config.keep_columns == columns


def test_a_snapshot_without_the_setting_is_up_to_date(config: DatasetConfig) -> None:
    first = build(config).snapshot
    older = {name: value for name, value in first.config.items() if name != "keep_columns"}
    assert config.changed_fields(older) == ()
    assert snapshot.read(config.dataset).config["keep_columns"] == []
    assert np.array_equal(first.palette(), snapshot.read(config.dataset).palette())
