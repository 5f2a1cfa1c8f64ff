"""Files of labels: what is read of each form, and one line for what cannot be used."""

import gzip
import unicodedata
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import IgptError
from tests.pipeline.source.test_list_source import Listed, column, listed, write


def labelled(source: Listed) -> dict[str, str | None]:
    return dict(zip(column(source, "name"), column(source, "label"), strict=True))


def with_images(folder: Path, count: int = 4) -> Path:
    for number in range(count):
        write(folder / "raw" / f"{number}.png", bytes([number]))
    return folder / "raw"


TEXTS = {
    "text stays as written": (
        "file_name,label\n0.png,01\n1.png,1\n2.png,1e5\n3.png,true\n",
        ["01", "1", "1e5", "true"],
    ),
    "nothing": ("file_name,label\n0.png,cat\n1.png,\n2.png,-1\n3.png,nan\n", ["cat", None, None, None]),
    "quoted": (
        'file_name,label\n0.png,"a, ""b"""\n1.png,"two\nlines"\n2.png," c"\n3.png,d\n',
        ['a, "b"', "two\nlines", " c", "d"],
    ),
    "byte order mark and CRLF": ("\ufefffile_name,label\r\n0.png,a\r\n1.png,b\r\n2.png,a\r\n3.png,b\r\n", list("abab")),
    "a long row": (f"file_name,label,mask\n0.png,a,{'x' * 3_000_000}\n1.png,b,\n2.png,c,\n3.png,d,\n", list("abcd")),
    "a path with a dot": ("file_name,label\n./0.png,a\n./1.png,b\n2.png,c\n3.png,d\n", list("abcd")),
    "no last line break": ("label,file_name,more\na,0.png,1\nb,1.png,2\nc,2.png,3\nd,3.png,4", list("abcd")),
}


@pytest.mark.parametrize("situation", TEXTS)
def test_a_csv(tmp_path: Path, situation: str) -> None:
    text, labels = TEXTS[situation]
    write(tmp_path / "labels.csv", text.encode())
    source = listed(with_images(tmp_path), labels=str(tmp_path / "labels.csv"))
    assert list(labelled(source).values()) == labels
    assert source.source.unlabelled == labels.count(None)


def test_a_tsv(tmp_path: Path) -> None:
    write(tmp_path / "labels.tsv", b"file_name\tlabel\n0.png\ta,b\n")
    assert labelled(listed(with_images(tmp_path, 1), labels=str(tmp_path / "labels.tsv"))) == {"0.png": "a,b"}


REFUSED: dict[str, tuple[bytes, str]] = {
    "latin-1": ("file_name,label\n0.png,tea\n1.png,caf\u00e9\n".encode("latin-1"), "line 3 is not UTF-8 (byte 0xe9)"),
    "UTF-16": ("file_name,label\n0.png,a\n".encode("utf-16"), "UTF-16"),
    "UTF-16 without a mark": ("file_name,label\n0.png,a\n".encode("utf-16-le"), "UTF-16"),
    "UTF-32": ("file_name,label\n0.png,a\n".encode("utf-32"), "UTF-16"),
    "semicolons": (b"file_name;label\n0.png;a,b\n", "separated by semicolons; save it with commas"),
    "tabs": (b"\nfile_name\tlabel\n0.png\ta,b\n", "separated by tabs; name it .tsv"),
    "blanks in the header": (b"file_name, label\n0.png, a\n", "no column label among file_name, ' label'"),
    "other columns": (b"path|label\n0.png|a\n", "no column file_name or label among path|label"),
    "ragged": (b"file_name,label\n0.png,a,b\n", "not a readable CSV file"),
    "no name": (b"file_name,label\n0.png,a\n,b\n", "row 2 has no file_name"),
    "compressed": (gzip.compress(b"file_name,label\n0.png,a\n"), "it is compressed"),
    "a workbook": (b"PK\3\4" + bytes(30), "it is a workbook"),
    "JSON": (b'{"file_name": "0.png", "label": "a"}\n', "it is JSON; save it as CSV"),
    "a picture": (b"\x89PNG\r\n", "it is a picture"),
    "empty": (b"", "not a readable CSV file"),
    "label twice": (b"file_name,label,label\n0.png,a,b\n", "2 columns are named 'label'"),
    "file_name twice": (b"file_name,file_name,label\n0.png,0.png,a\n", "2 columns are named 'file_name'"),
    "an image twice": (b"file_name,label\n0.png,a\n0.png,b\n", "'0.png' is named twice"),
    "no image": (b"file_name,label\nraw/0.png,a\nraw/1.png,b\n", "none of its 2 rows names an image"),
    "no row": (b"file_name,label\n", "it has no rows"),
}


@pytest.mark.parametrize("situation", REFUSED)
def test_one_line_for_what_cannot_be_used(tmp_path: Path, situation: str) -> None:
    data, words = REFUSED[situation]
    path = write(tmp_path / "labels.csv", data)
    with pytest.raises(IgptError) as raised:
        listed(with_images(tmp_path), labels=str(path))
    assert str(raised.value).startswith(f"{path}: ") and words in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("name", ["passwd", "shadow.bak", "environ", ".env", "igpt.env", "signing-key", "labels.txt"])
def test_no_line_of_another_file_is_shown(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name, b"root:x:0:0,secret\nSECRET=hidden\n")
    with pytest.raises(IgptError, match=r"must be one of \.csv, \.tsv, \.parquet by its name") as raised:
        listed(with_images(tmp_path), labels=str(path))
    assert "secret" not in str(raised.value).replace(str(path), "").lower()


def test_no_value_of_a_ragged_row_is_shown(tmp_path: Path) -> None:
    path = write(tmp_path / "labels.csv", b"file_name,label\n0.png,a\n1.png,secret,hidden\n")
    with pytest.raises(IgptError, match="Row #3: Expected 2 columns, got 3\\)") as raised:
        listed(with_images(tmp_path), labels=str(path))
    assert "secret" not in str(raised.value)


COLUMNS: dict[str, tuple[pa.Array, list[str | None]]] = {
    "integers": (pa.array([0, 1, -1, None]), ["0", "1", None, None]),
    "floats": (pa.array([0.0, 1.0, float("nan"), -1.0]), ["0", "1", None, None]),
    "bytes": (pa.array([b"cat", "caf\u00e9".encode(), b"", b"-1"]), ["cat", "caf\u00e9", None, None]),
    "dictionary": (pa.array(["a", "b", "a", None]).dictionary_encode(), ["a", "b", "a", None]),
    "nothing at all": (pa.nulls(4), [None] * 4),
    "large text": (pa.array(["a", "b", "c", "d"], pa.large_string()), list("abcd")),
}


@pytest.mark.parametrize("situation", COLUMNS)
@pytest.mark.parametrize("of_names", [str, str.encode])
def test_a_parquet_file(tmp_path: Path, situation: str, of_names: Callable[[str], object]) -> None:
    values, labels = COLUMNS[situation]
    table = pa.table({"file_name": [of_names(f"{number}.png") for number in range(4)], "label": values})
    pq.write_table(table, tmp_path / "labels.parquet")
    source = listed(with_images(tmp_path), labels=str(tmp_path / "labels.parquet"))
    assert list(labelled(source).values()) == labels


def test_lists_of_labels_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "labels.parquet"
    pq.write_table(pa.table({"file_name": ["0.png"], "label": [[0, 1]]}), path)
    with pytest.raises(IgptError, match=r"'label' is list<.*and an image has one value"):
        listed(with_images(tmp_path), labels=str(path))


def test_the_column_may_have_another_name(tmp_path: Path) -> None:
    path = write(tmp_path / "labels.csv", b"file_name,species,label\n0.png,cat,9\n1.png,dog,9\n")
    source = listed(with_images(tmp_path, 2), labels=str(path), label_column="species")
    assert labelled(source) == {"0.png": "cat", "1.png": "dog"}
    with pytest.raises(IgptError, match="no column kind among file_name, species, label"):
        listed(with_images(tmp_path, 2), labels=str(path), label_column="kind")


def test_paths_may_begin_with_the_address_of_the_source(tmp_path: Path) -> None:
    raw = with_images(tmp_path, 2)
    path = write(tmp_path / "labels.csv", f"file_name,label\n{raw}/0.png,cat\n{raw}/1.png,dog\n".encode())
    assert labelled(listed(raw, labels=str(path))) == {"0.png": "cat", "1.png": "dog"}


def test_what_has_no_partner_is_counted(tmp_path: Path) -> None:
    path = write(tmp_path / "labels.csv", b"file_name,label\n0.png,cat\n8.png,dog\n9.png,dog\n")
    source = listed(with_images(tmp_path), labels=str(path)).source
    assert (source.unlabelled, source.unmatched_labels) == (3, 2)


def test_names_that_differ_in_their_unicode_form_alone_keep_their_labels(tmp_path: Path) -> None:
    forms = [unicodedata.normalize(form, "\u00e9t\u00e9.png") for form in ("NFC", "NFD")]
    other = unicodedata.normalize("NFD", "na\u00efve.png")
    for name in (*forms, other):
        write(tmp_path / "raw" / name)
    rows = "".join(f"{name},{number}\n" for number, name in enumerate(forms))
    text = f"file_name,label\n{rows}{unicodedata.normalize('NFC', other)},2\n"
    path = write(tmp_path / "labels.csv", text.encode())
    assert labelled(listed(tmp_path / "raw", labels=str(path))) == {forms[0]: "0", forms[1]: "1", other: "2"}


def test_a_file_name_that_is_not_utf8_is_written_as_the_listing_has_it(tmp_path: Path) -> None:
    folder = with_images(tmp_path, 1)
    (Path(str(folder)) / "caf\udce9.png").write_bytes(b"content")
    path = write(tmp_path / "labels.csv", b"file_name,label\ncaf\\xe9.png,drink\n")
    assert labelled(listed(folder, labels=str(path))) == {"0.png": None, "caf\\xe9.png": "drink"}
