"""What was left out is told in one harmless line, by kinds that a reader knows."""

import pytest

from pipeline.source import containers, left_out


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("cats/a.HEIC", ".heic"),
        ("labels.csv", ".csv"),
        ("all.TAR.gz", ".tar.gz"),
        ("all.tar.zst", ".tar.zst"),
        ("mai.2026.txt", ".txt"),
        ("Größe.übersicht", ".übersicht"),
        ("README", "without an extension"),
        ("cats.old/README", "without an extension"),
        ("a.", "without an extension"),
        ("a.[/i]", "without an extension"),
        ("a.\x1b[31m", "without an extension"),
        ("a.b\nc d", "without an extension"),
        ("a.2026-01-01 a long remark", "without an extension"),
        ("a.averylongextension", "without an extension"),
    ],
)
def test_a_kind_is_an_extension_of_letters_and_digits(name: str, kind: str) -> None:
    assert left_out.kind_of(name) == kind


def test_the_commonest_kinds_are_told_first_and_many_are_summed_up() -> None:
    assert left_out.describe({".txt": 1}) == "1 file left out: 1 .txt"
    kinds = {".txt": 1, "without an extension": 5, ".csv": 1200}
    assert left_out.describe(kinds) == "1,206 files left out: 1,200 .csv, 5 without an extension, 1 .txt"
    many = {f".kind{number:02}": 20 - number for number in range(20)}
    assert left_out.describe(many).startswith("210 files left out: 20 .kind00, 19 .kind01")
    assert left_out.describe(many).endswith(", 9 .kind11, 36 of 8 other kinds")


def test_a_scan_keeps_what_was_left_out() -> None:
    members = containers.MEMBERS.empty_table()
    assert left_out.attached(members) == {}
    scan = containers.to_bytes(left_out.attach(members, {".json": 3}))
    assert left_out.attached(containers.from_bytes(scan)) == {".json": 3}
