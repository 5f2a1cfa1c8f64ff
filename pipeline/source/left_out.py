"""Files of a source that are no images by their names: counted by extension, so that a build can tell. Pure."""

import json
import re
from collections import Counter
from collections.abc import Mapping

import pyarrow as pa

DANGLING_LINKS = "links that lead nowhere"
SPECIAL_FILES = "pipes, sockets and devices"
_NO_EXTENSION = "without an extension"
# Names may hold anything; what is told of them are letters and digits.
_EXTENSION = re.compile(r"\.(?:tar\.)?[^\W_]{1,12}$")
_TOLD = 12
_FIELD = b"left_out"


def kind_of(name: str) -> str:
    """The extension of a file's name, in lower case, or what is told in its place."""
    extension = _EXTENSION.search(name.lower())
    return extension.group() if extension else _NO_EXTENSION


def describe(left_out: Mapping[str, int]) -> str:
    """What was left out, in one line: the commonest kinds first."""
    total = sum(left_out.values())
    kinds = sorted(left_out.items(), key=lambda kind: (-kind[1], kind[0]))
    told = [f"{count:,} {kind}" for kind, count in kinds[:_TOLD]]
    if len(kinds) > _TOLD:
        told.append(f"{sum(count for _, count in kinds[_TOLD:]):,} of {len(kinds) - _TOLD} other kinds")
    return f"{total:,} {'file' if total == 1 else 'files'} left out: {', '.join(told)}"


def attach(members: pa.Table, left_out: Mapping[str, int]) -> pa.Table:
    """A container's members, with the number of others by extension in the metadata of the schema."""
    if not left_out:
        return members
    return members.replace_schema_metadata({**(members.schema.metadata or {}), _FIELD: json.dumps(left_out).encode()})


def attached(members: pa.Table) -> Counter[str]:
    """What `attach` stored."""
    return Counter(json.loads((members.schema.metadata or {}).get(_FIELD, b"{}")))
