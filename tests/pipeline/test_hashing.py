"""Checksums and digests, compared with published values."""

from pathlib import Path

from pipeline.hashing import digest, sha256, sha256_of_file

ABC = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-2, appendix B.1


def test_bytes_and_files_have_the_published_checksum(tmp_path: Path) -> None:
    (tmp_path / "abc").write_bytes(b"abc")
    assert sha256(b"abc") == sha256_of_file(tmp_path / "abc") == ABC


def test_a_digest_depends_on_the_value_and_not_on_how_it_is_written() -> None:
    assert digest({"a": 1, "b": [2, 3]}) == digest({"b": [2, 3], "a": 1}) == sha256(b'{"a":1,"b":[2,3]}')
    assert digest({"a": 1, "b": [2, 3]}) != digest({"a": 1, "b": [3, 2]})
