"""Which files of a folder are meant: in it, in one subfolder per class, or per split."""

from collections.abc import Set
from pathlib import Path

from genfast.data._files import StrPath, check_inside, data_error, list_folder

_SPLIT_FOLDERS = {"train": "train", "test": "test", "valid": "valid", "val": "valid"}


def split_folders(path: StrPath) -> dict[str, Path]:
    """Return the subfolders that are splits; without a train folder they are classes."""
    found = {
        _SPLIT_FOLDERS[entry.name]: entry
        for entry in list_folder(path)
        if entry.name in _SPLIT_FOLDERS and entry.is_dir()
    }
    return found if "train" in found else {}


def has_files(path: StrPath, suffixes: Set[str]) -> bool:
    """Tell whether files named so are in a folder, or one or two subfolders down."""
    level = [Path(path)]
    for _ in range(3):
        entries = [entry for folder_ in level for entry in list_folder(folder_)]
        if any(_is_file(entry, suffixes) for entry in entries):
            return True
        level = [entry for entry in entries if entry.is_dir() and not entry.is_symlink()]
    return False


def find_files(
    root: Path, top: StrPath, follow_links: bool, suffixes: Set[str], what: str
) -> list[tuple[str | None, Path]]:
    """Return `(class name or None, file)` for every file named so, in order.

    Args:
        root: the folder of one split.
        top: the folder of the dataset, out of which links may lead only with `follow_links`.
        follow_links: see above.
        suffixes: in lower case.
        what: what the files are, in the plural, for messages.
    """
    check_inside(root, top, follow_links)
    entries = list_folder(root)
    classes = [entry for entry in entries if entry.is_dir()]
    found: list[tuple[str | None, Path]] = [
        (None, entry) for entry in entries if _is_file(entry, suffixes)
    ]
    if found and classes:
        expected = f"{what}, or one folder per class"
        raise data_error(root, expected, f"both ({found[0][1].name}, {classes[0].name}/)")
    for entry in classes:
        check_inside(entry, top, follow_links)
        inside = list_folder(entry)
        deeper = next((item for item in inside if item.is_dir()), None)
        if deeper is not None:
            raise data_error(entry, f"a class folder with {what} only", f"folder {deeper.name}")
        found += [(entry.name, item) for item in inside if _is_file(item, suffixes)]
    if not found:
        raise data_error(root, f"{what[:-1]} files ({' '.join(sorted(suffixes))})", "none")
    for _, file in found:
        check_inside(file, top, follow_links)
    return found


def class_numbers(
    files: dict[str, list[tuple[str | None, Path]]],
) -> dict[str, list[int] | None]:
    """Return the labels of each split's files: places of the class names in alphabetical order."""
    names = sorted({name for part in files.values() for name, _ in part if name is not None})
    ids = {name: label for label, name in enumerate(names)}
    return {
        part: [ids[name] for name, _ in entries if name is not None] or None
        for part, entries in files.items()
    }


def _is_file(path: Path, suffixes: Set[str]) -> bool:
    return path.suffix.lower() in suffixes and not path.is_dir()
