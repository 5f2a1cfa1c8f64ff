"""Headers of Parquet's pages: those that pyarrow writes, and bytes that are none."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.source.page_headers import ThriftError, page_header


@pytest.mark.parametrize("version", ["1.0", "2.0"])
@pytest.mark.parametrize("compression", ["none", "snappy", "zstd"])
@pytest.mark.parametrize("use_dictionary", [True, False])
def test_the_pages_of_a_column_follow_each_other(
    tmp_path: Path, version: str, compression: str, use_dictionary: bool
) -> None:
    texts = [f"text {number % 700}" * 5 for number in range(5000)]
    options = {"data_page_version": version, "compression": compression, "use_dictionary": use_dictionary}
    pq.write_table(pa.table({"text": texts}), tmp_path / "a.parquet", data_page_size=10_000, **options)
    data = (tmp_path / "a.parquet").read_bytes()
    chunk = pq.ParquetFile(tmp_path / "a.parquet").metadata.row_group(0).column(0)
    position = chunk.dictionary_page_offset if use_dictionary else chunk.data_page_offset
    end = position + chunk.total_compressed_size
    headers = []
    while position < end:
        headers.append(page_header(data[position:]))
        position += headers[-1].header_bytes + headers[-1].compressed_bytes
    assert position == end and len(headers) > 1
    assert sum(header.values for header in headers if not header.is_dictionary) == 5000
    assert [header.values for header in headers if header.is_dictionary] == [700] * use_dictionary
    sizes = sum(header.header_bytes + header.uncompressed_bytes for header in headers)
    assert sizes == chunk.total_uncompressed_size


@pytest.mark.parametrize(
    "data", [b"", b"\x15", b"\xff" * 40, b"\x15\x00\x15", bytes(40), b"\x1c" * 5000, b"\x19\xff\xff\xff"]
)
def test_what_is_no_page_header(data: bytes) -> None:
    with pytest.raises(ThriftError):
        page_header(data)
