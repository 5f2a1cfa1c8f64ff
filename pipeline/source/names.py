"""Names of raw images: where they lie below the source, and what their folders and containers say of them. Pure.

A name is what the store or the archive has, segment by segment; only bytes that are not UTF-8 are escaped
(see store/path_text.py). Two objects never share one, and an object has the same in every listing.
"""

import re
from urllib.parse import unquote

from pipeline.store.path_text import to_text

# A segment that begins with a dot and is not . or .., or a leftover of file managers and network storage, whose
# thumbnails are no images of the source.
_HIDDEN = re.compile(
    r"(?:^|/)(?:\.(?!\.?(?:/|$))|__MACOSX"
    r"|(?:@eaDir|@__thumb|#recycle|@Recycle|\$RECYCLE\.BIN|System Volume Information)(?:/|$))"
)
_ARCHIVES = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".tzst", ".tar", ".zip", ".parquet")
_SPLIT_OF = {"train": "train", "training": "train", "test": "test", "testing": "test"} | dict.fromkeys(
    ("val", "valid", "validation", "dev", "eval"), "validation"
)
# Folders within those of classes, as in Tiny ImageNet: train/n01443537/images/0.JPEG.
_OF_IMAGES = frozenset({"images", "image", "imgs", "img"})
_HIVE_NULL = "__HIVE_DEFAULT_PARTITION__"
_WORDS = re.compile(r"[-_. ]+")
# What names of archives have beside a split or a number: part-00000, images_001, train-00000-of-00002.
_PARTS = re.compile(
    r"(of|parts?|shards?|chunks?|batch(es)?|data|dataset|sets?|images?|imgs?|photos?|pictures?|full|all)"
)


def below(url: str, file_url: str) -> str:
    """The name of an object in the source of a URL; that of its file when it is the source itself."""
    name = file_url[len(url) :]
    if not url.endswith("/"):
        name = name.removeprefix("/")
    return name or file_url.rsplit("/", 1)[-1]


def of_member(path: str) -> str:
    """The name of a member of an archive: no leading slash, and none of the segments that lead nowhere (`./`, `//`).

    `..` goes back one folder; above the top of the archive it stays.
    """
    segments: list[str] = []
    for segment in path.split("/"):
        if segment == ".." and segments and segments[-1] != "..":
            segments.pop()
        elif segment not in ("", "."):
            segments.append(segment)
    return to_text("/".join(segments))


def of_link(name: str, target: str) -> str:
    """The name of what a link in an archive leads to; `name` is that of the link."""
    folder = "" if target.startswith("/") else name.rpartition("/")[0]
    return of_member(f"{folder}/{target}")


def is_hidden(name: str) -> bool:
    """Whether a path is hidden or a leftover of a file manager."""
    return _HIDDEN.search(name) is not None


def folder_of(name: str) -> str | None:
    """The name of a file's folder, or None at the top level. Folders that only say `images` are passed over."""
    for folder in reversed(name.split("/")[:-1]):
        if folder not in ("", ".") and folder.lower() not in _OF_IMAGES:
            return None if folder == ".." else folder
    return None


def sample_of(name: str) -> str:
    """The WebDataset sample of a member: its path up to the first dot of the file name."""
    folder, slash, file = name.rpartition("/")
    return f"{folder}{slash}{file.split('.', 1)[0]}"


def stem_of(name: str) -> str:
    """The name of an archive's file without its extension."""
    file = name.rsplit("/", 1)[-1]
    lower = file.lower()
    return next((file[: -len(ending)] for ending in _ARCHIVES if lower.endswith(ending)), file)


def is_archive(name: str) -> bool:
    """Whether a file may hold others, by its extension."""
    return name.lower().endswith(_ARCHIVES)


def split_of_folder(folder: str) -> str | None:
    """The split of a folder whose own name is a split's name, in upper or lower case."""
    return _SPLIT_OF.get(folder.lower())


def split_of_archive(name: str) -> str | None:
    """The split of an archive: its name begins with a split's, and has nothing else but words for parts and numbers."""
    first, *others = _WORDS.split(stem_of(name).lower())
    split = _SPLIT_OF.get(first)
    return split if split and all(_is_part(word) for word in others) else None


def of_partition(name: str, column: str) -> str | None:
    """What the folders of a path say of a column, as Hive writes it: `column=value`; None where they say nothing."""
    for folder in reversed(name.split("/")[:-1]):
        of, equals, value = folder.partition("=")
        if equals and of == column:
            return None if value in ("", _HIVE_NULL) else unquote(value)
    return None


def split_of(name: str) -> tuple[str, str] | None:
    """The split that the outermost folder or archive of a path names, and the segment that names it; else None."""
    for segment in name.split("/"):
        split = split_of_folder(segment.removeprefix("split="))
        if split is None and stem_of(segment) != segment:
            split = split_of_archive(segment)
        if split is not None:
            return split, segment
    return None


def _is_part(word: str) -> bool:
    return not word or any(letter.isdigit() for letter in word) or _PARTS.fullmatch(word) is not None


def is_one_of_many(name: str) -> bool:
    """Whether the name of an archive is that of a part, such as train-00000-of-00002.parquet or 00000.tar.

    Others name what is in the archive, such as n01440764.tar.
    """
    words = [word for word in _WORDS.split(stem_of(name).lower()) if word]
    numbered = any(word.isdecimal() for word in words)
    generic = all(_PARTS.fullmatch(word.rstrip("0123456789")) or word in _SPLIT_OF for word in words)
    return numbered or generic or not words


def class_of_archive(name: str, *, stands_for_a_class: bool, label_column: str) -> str | None:
    """The class of the images at the top of an archive that has no labels: that of its folder, else its own name.

    `stands_for_a_class`: whether it is one of several in its folder whose names are not those of parts, so that each
    is a class, as n01440764.tar. Folders of splits are passed over, and so are those of Hive's other columns.
    """
    own = None if is_one_of_many(name) else stem_of(name)
    if own is not None and stands_for_a_class:
        return own
    for folder in reversed(name.split("/")[:-1]):
        column, equals, _ = folder.partition("=")
        if equals and column in (label_column, "label"):
            return of_partition(name, column)
        if equals or folder in ("", ".", "..") or split_of_folder(folder) is not None or folder.lower() in _OF_IMAGES:
            continue
        if stem_of(folder) == folder:
            return folder
        if not is_one_of_many(folder):  # Spark writes a folder cat.parquet
            return stem_of(folder)
    return own
