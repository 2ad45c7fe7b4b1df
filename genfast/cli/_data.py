"""Opening data as the command line's options say, and the note that lets `evaluate` do it again."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genfast.errors import InputError

if TYPE_CHECKING:
    from genfast.data import ImageDataset, SoundDataset

NOTE = "command.json"


@dataclass(frozen=True)
class DataOptions:
    """From where to read images or sounds, and how.

    Attributes:
        spec: what `genfast.data.open_data` takes.
        size: "N" or "HxW" to resize a folder of images to, or None.
        channels: 1 or 3 to read a folder of images as grey or colour, or None.
        max_bytes: most memory the images may take, or None for the default.
        follow_links: whether links may lead out of the folder.
    """

    spec: str
    size: str | None = None
    channels: int | None = None
    max_bytes: int | None = None
    follow_links: bool = False

    def open(self, split: str) -> "ImageDataset":
        """Open one split of images."""
        from genfast.data import folder, open_data
        from genfast.data.open import detect

        common = self._common()
        if self.size is None and self.channels is None:
            return open_data(self.spec, split, **common)
        path = self.spec.removeprefix("folder:")
        if self.spec == "digits" or (path == self.spec and detect(path) != "folder"):
            rule = "a folder of images with --size or --channels"
            raise InputError(f"data: expected {rule}, got --data {self.spec!r}")
        size = None if self.size is None else _parse_size(self.size)
        return folder(path, split, size=size, channels=self.channels, **common)

    def open_sounds(self, split: str) -> "SoundDataset":
        """Open one split of sounds."""
        from genfast.data import open_sounds

        if self.size is not None or self.channels is not None:
            rule = "no --size and no --channels with sounds"
            raise InputError(f"data: expected {rule}, got --data {self.spec!r}")
        return open_sounds(self.spec, split, **self._common())

    def _common(self) -> dict[str, Any]:
        cap = {} if self.max_bytes is None else {"max_bytes": self.max_bytes}
        return {"follow_links": self.follow_links, **cap}


def write_note(run: Path, model: str, data: DataOptions) -> None:
    """Note beside a run what it was trained on, for `genfast evaluate RUN` without --data."""
    from genfast._files import encode_json, write_atomic

    write_atomic(run / NOTE, encode_json({"model": model, "data": asdict(data)}))


def read_note(run: Path) -> DataOptions | None:
    """Read what a run was trained on; None if that is not known."""
    try:
        return DataOptions(**json.loads((run / NOTE).read_bytes())["data"])
    except (OSError, ValueError, KeyError, TypeError):
        pass
    try:  # a run made by genfast.fit or genfast compare
        name = json.loads((run / "run.json").read_bytes())["data"]["name"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return DataOptions("digits") if name == "digits" else None


def _parse_size(text: str) -> tuple[int, int]:
    height, cross, width = text.lower().partition("x")
    try:
        size = int(height), int(width if cross else height)
    except ValueError:
        size = 0, 0
    if min(size) < 1:
        raise InputError(f"data: expected --size N or HxW, such as 32 or 32x48, got {text!r}")
    return size
