"""Sizes of the pages of a Parquet file, from the header before each, in Thrift's compact form.

pyarrow allocates what a header claims before it reads the page. Format: parquet-format's PageHeader, and
"Thrift Compact protocol" of Apache Thrift.
"""

from dataclasses import dataclass

_STRUCT, _LISTS, _MAPS = 12, (9, 10), 11
_DICTIONARY_ENCODINGS = (2, 8)


class ThriftError(ValueError):
    """Bytes are no header in Thrift's compact form."""


@dataclass(frozen=True, kw_only=True)
class PageHeader:
    """What the header of a page claims."""

    header_bytes: int
    uncompressed_bytes: int
    compressed_bytes: int
    values: int
    is_dictionary: bool
    uses_dictionary: bool
    """Whether its values are numbers of entries of the dictionary."""


def page_header(data: bytes) -> PageHeader:
    """Parse the header at the beginning of some bytes. Raises ThriftError when there is none, or not all of it."""
    reader = _Reader(data)
    try:
        fields = reader.struct()
    except (IndexError, RecursionError):
        raise ThriftError("not a page header") from None
    of_kind: dict = next((fields[number] for number in (5, 7, 8) if isinstance(fields.get(number), dict)), {})
    sizes = [size for size in (fields.get(2), fields.get(3), of_kind.get(1)) if isinstance(size, int) and size >= 0]
    if len(sizes) != 3:
        raise ThriftError("not a page header")
    return PageHeader(
        header_bytes=reader.position,
        uncompressed_bytes=sizes[0],
        compressed_bytes=sizes[1],
        values=sizes[2],
        is_dictionary=7 in fields,
        uses_dictionary=of_kind.get(4 if 8 in fields else 2) in _DICTIONARY_ENCODINGS,
    )


class _Reader:
    def __init__(self, data: bytes) -> None:
        self._data, self.position = data, 0

    def _byte(self) -> int:
        self.position += 1
        return self._data[self.position - 1]

    def _varint(self) -> int:
        value = shift = 0
        while True:
            byte = self._byte()
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
            shift += 7
            if shift > 63:
                raise ThriftError("not a number")

    def _zigzag(self) -> int:
        value = self._varint()
        return (value >> 1) ^ -(value & 1)

    def _skip(self, count: int) -> None:
        if count > len(self._data) - self.position:
            raise IndexError
        self.position += count

    def struct(self) -> dict:
        """The fields of a struct by number; those of other kinds than numbers and structs are None."""
        fields: dict = {}
        number = 0
        while True:
            head = self._byte()
            if head == 0:
                return fields
            number = number + (head >> 4) if head >> 4 else self._zigzag()
            fields[number] = self._value(head & 15)

    def _value(self, kind: int) -> object:
        if kind in (1, 2):  # true, false
            return None
        if kind == 3:
            return self._byte()
        if kind in (4, 5, 6):
            return self._zigzag()
        if kind == 7:  # double
            self._skip(8)
        elif kind == 8:  # bytes
            self._skip(self._varint())
        elif kind in _LISTS:
            head = self._byte()
            count = self._varint() if head >> 4 == 15 else head >> 4
            for _ in range(count):
                self._element(head & 15)
        elif kind == _MAPS:
            count = self._varint()
            kinds = self._byte() if count else 0
            for _ in range(count):
                self._element(kinds >> 4)
                self._element(kinds & 15)
        elif kind == _STRUCT:
            return self.struct()
        else:
            raise ThriftError(f"no such type: {kind}")
        return None

    def _element(self, kind: int) -> None:
        if kind in (1, 2):
            self._skip(1)
        else:
            self._value(kind)
