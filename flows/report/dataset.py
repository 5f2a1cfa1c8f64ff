"""The sections of a report on a build: how many images are in a dataset, and which were rejected and why."""

from collections.abc import Sequence

from flows.report import pictures
from flows.report.content import Block, Fact, Facts, Gallery, Group, Picture, Section, Table
from pipeline.build.build import BuildResult
from pipeline.dataset.snapshot import SPLITS
from pipeline.inspect import history
from pipeline.inspect.rejected_pictures import RejectedPicture
from pipeline.printable import printable
from pipeline.source import left_out
from pipeline.store import objects

_MAX_INDEXES = 500  # that are read to count images by class; with more it would take minutes


def counts(built: BuildResult) -> Section:
    """Where the images of the source went, by split and class."""
    data = built.snapshot
    rejected = sum(data.rejected.values())
    side, colours = data.resolution, data.colours
    facts = [
        Fact(name="images in the source", value=f"{built.planned.images_in:,}"),
        Fact(name="in the dataset", value=f"{data.images():,}", note=f"{len(data.shards):,} shards"),
        Fact(name="rejected", value=f"{rejected:,}"),
        Fact(name="made into", value=f"{side}x{side} pixels of {colours:,} colours"),
    ]
    if built.planned.left_out:
        facts.append(Fact(name="other files", value=left_out.describe(built.planned.left_out)))
    if built.planned.unlabelled:
        facts.append(Fact(name="without a class", value=f"{built.planned.unlabelled:,}"))
    splits = Table.of(
        [
            {
                "split": split,
                "images": data.images(split),
                "samples": data.samples(split),
                "shards": sum(shard.split == split for shard in data.shards),
            }
            for split in SPLITS
        ]
    )
    blocks: list[Block] = [Facts(facts=tuple(facts)), splits]
    if len(data.shards) <= _MAX_INDEXES:
        rows: list[dict[str, object]] = [
            {"class": name or "(no class)", **{split: by_split.get(split, 0) for split in SPLITS}}
            for name, by_split in history.contents(data).images_by_class.items()
        ]
        blocks.append(Table.of(rows))
    return Section(name="dataset", title="Dataset", blocks=tuple(blocks))


def rejected(built: BuildResult, shown: Sequence[RejectedPicture]) -> Section:
    """How many images were rejected for which reason, and some of each."""
    blocks: list[Block] = []
    if built.snapshot.rejected:
        rows: list[dict[str, object]] = [
            {"reason": reason.replace("_", " "), "images": count} for reason, count in built.snapshot.rejected.items()
        ]
        blocks.append(Table.of(rows))
        groups = []
        for reason in dict.fromkeys(image.reason for image in shown):
            of_reason = [image for image in shown if image.reason == reason]
            visible = tuple(_picture(image) for image in of_reason if image.pixels is not None)
            hidden = [image for image in of_reason if image.pixels is None]
            groups.append(Group(title=reason.replace("_", " "), pictures=visible))
            groups += [Group(text=f"{_name(image.uri)}: {image.detail}; no picture of it") for image in hidden]
        if groups:
            blocks.append(
                Gallery(
                    groups=tuple(group for group in groups if group.pictures or group.text or group.title),
                    caption="Some of each, as far as they can be decoded.",
                )
            )
    return Section(name="rejected", title="Rejected images", blocks=tuple(blocks))


def _picture(image: RejectedPicture) -> Picture:
    assert image.pixels is not None
    name = _name(image.uri)
    caption = f"{name}: {image.detail}" if image.detail else name
    return Picture(data=pictures.tile(image.pixels), alt=f"{image.reason}: {name}", caption=caption, keys=(image.key,))


def _name(uri: str) -> str:
    return printable(objects.name_of(uri))
