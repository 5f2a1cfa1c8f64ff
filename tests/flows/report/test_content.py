"""What a report holds: bounded tables and galleries, links that are links, and no empty sections."""

import numpy as np
import pytest

from flows.report.content import MAX_ROWS, Fact, Gallery, Group, Matrix, Picture, Report, Section, Table, Text


@pytest.mark.parametrize(
    ("link", "kept"),
    [("http://127.0.0.1:5000/#/x", True), ("https://m/", True), ("javascript:alert(1)", False), ("s3://runs/a", False)],
)
def test_only_addresses_of_pages_are_links(link: str, kept: bool) -> None:
    assert Fact(name="a", value="b", link=link).link == (link if kept else "")


def test_a_section_without_blocks_is_left_out() -> None:
    full = Section(name="a", title="A", blocks=(Text(text="x"),))
    report = Report(
        title="t", subtitle="", headline=(), dataset="d", sections=(Section(name="b", title="B", blocks=()), full)
    )
    assert report.sections == (full,)


def test_a_long_table_says_how_many_rows_it_leaves_out() -> None:
    table = Table.of([{"n": number} for number in range(MAX_ROWS + 7)])
    assert (len(table.rows), table.more_rows) == (MAX_ROWS, 7)
    assert Table.of([{"n": 1, "m": 2}]) == Table(columns=("n", "m"), rows=((1, 2),))


def test_a_matrix_gives_counts_and_their_share_of_the_row() -> None:
    matrix = Matrix(classes=("a", "b", "c"), counts_KK=np.array([[3, 1, 0], [0, 2, 0], [0, 0, 0]]))
    assert matrix.rows == [
        ("a", [(3, 75), (1, 25), (0, 0)]),
        ("b", [(0, 0), (2, 100), (0, 0)]),
        ("c", [(0, 0), (0, 0), (0, 0)]),
    ]


def test_a_gallery_becomes_smaller_until_it_is_empty_and_counts_what_it_leaves_out() -> None:
    def group(count: int) -> Group:
        return Group(pictures=tuple(Picture(data=b"", alt=str(number)) for number in range(count)))

    gallery = Gallery(groups=(group(7), group(3), group(0)))
    counts = []
    while gallery.pictures:
        gallery = gallery.smaller()
        counts.append(len(gallery.pictures))
        assert gallery.left_out + counts[-1] == 10
        assert all(group.pictures[0].alt == "0" for group in gallery.groups if group.pictures), (
            "the first ones are kept"
        )
    assert counts == sorted(counts, reverse=True) and counts[:3] == [6, 3, 2]


def test_a_gallery_loses_its_moving_pictures_first_and_never_the_still_ones_beside_them() -> None:
    moving, still = Picture(data=b"", alt="moving", moves=True), Picture(data=b"", alt="still")
    gallery = Gallery(groups=(Group(pictures=(moving, still)), Group(pictures=(still,)), Group(pictures=(moving,))))
    smaller = gallery.smaller()
    assert [[picture.alt for picture in group.pictures] for group in smaller.groups] == [
        ["still"],
        ["still"],
        ["moving"],
    ]
    assert smaller.left_out == 1
    assert [len(group.pictures) for group in smaller.smaller().groups] == [1]
