"""Options that several commands have, and how their values are read."""

import ast
import dataclasses
import inspect
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from genfast.cli._help import option
from genfast.errors import InputError

# A copy of the keys of genfast.models.MODELS, which would cost the import of torch for a help text.
MODEL_NAMES = (
    "pixelcnn",
    "gated_pixelcnn",
    "pixelcnn_plus_plus",
    "wavenet",
    "autoencoder",
    "vae",
    "gan",
)

DATA_GROUP = "Data"

SPEC_HELP = (
    "Images: 'digits' (8x8, comes with scikit-learn), or a path: a folder of IDX files as of MNIST,"
    " of CIFAR .bin files, of train.npz and test.npz, or of image files; or one such file."
    " FORMAT:PATH (idx, cifar, cifar10, cifar100, npz, folder) says which it is"
)

Data = Annotated[str, option(metavar="SPEC", help=f"{SPEC_HELP}.", group=DATA_GROUP)]
Size = Annotated[
    str | None,
    option(
        metavar="N|HxW",
        help="Crop and resize each file of a folder of images to this many pixels, such as 32 or "
        "32x48 (default: as they are; their sizes must agree).",
        group=DATA_GROUP,
    ),
]
Channels = Annotated[
    int | None,
    option(
        metavar="1|3",
        help="Read the files of a folder of images as grey (1) or colour (3) (default: grey if "
        "all are).",
        group=DATA_GROUP,
    ),
]
MaxBytes = Annotated[
    int | None,
    option(
        metavar="BYTES",
        help="Refuse data that take more memory than this (default 4294967296, which is 4 GiB).",
        group=DATA_GROUP,
    ),
]
FollowLinks = Annotated[
    bool,
    option(
        "--follow-links",
        help="Follow symbolic links that lead out of the folder of the data (default: refuse).",
        group=DATA_GROUP,
    ),
]
Run = Annotated[
    Path,
    typer.Argument(
        metavar="RUN", help="Folder of a run that genfast train wrote, or of one checkpoint in it."
    ),
]
Device = Annotated[
    str,
    option(
        metavar="NAME", help="'cpu', 'cuda', 'cuda:N', or 'auto': CUDA if present (default auto)."
    ),
]


def check_model(command: str, name: str) -> None:
    """Refuse a model that is not known, before anything slow happens."""
    from genfast.models import MODELS

    if name not in MODELS:
        known = ", ".join(MODELS)
        raise InputError(f"{command}: expected MODEL to be one of {known}, got {name!r}")


def parse_settings(command: str, pairs: Iterable[str]) -> dict[str, Any]:
    """Read `NAME=VALUE` words into a dictionary.

    A value is a Python literal where it is one (1e-3, 256,128, None, True), else a word.
    """
    settings: dict[str, Any] = {}
    for pair in pairs:
        name, sign, text = pair.partition("=")
        name = name.strip().replace("-", "_")
        if not sign or not name:
            raise InputError(f"{command}: expected --set NAME=VALUE, got --set {pair!r}")
        if name in settings:
            raise InputError(f"{command}: expected each setting once, got {name} twice")
        settings[name] = _parse_value(text.strip())
    return settings


def _parse_value(text: str) -> Any:
    words = {"true": True, "false": False, "none": None, "null": None}
    if text.lower() in words:
        return words[text.lower()]
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return text


def fit_to_fields(config_class: type[Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Make a lone number a sequence of one where the config has a sequence: `hidden=256`."""
    defaults = {field.name: field.default for field in dataclasses.fields(config_class)}
    return {
        name: (value,)
        if isinstance(defaults.get(name), tuple) and isinstance(value, int | float)
        else value
        for name, value in settings.items()
    }


def list_settings(wanted: bool) -> None:
    """Print every model's settings, with default and meaning, and stop."""
    if not wanted:
        return
    from genfast.models import MODELS

    for name, (config_class, model_class) in MODELS.items():
        print(f"{name}: {(inspect.getdoc(model_class) or '').partition(chr(10))[0]}")
        meanings = _attributes(config_class)
        for field in dataclasses.fields(config_class):
            if field.name not in ("image_shape", "levels"):  # these come from the data
                default = str(field.default).strip("()").replace(" ", "")
                print(f"  {field.name}={default}  {meanings.get(field.name, '')}")
        print()
    raise typer.Exit


def _attributes(config_class: type[Any]) -> dict[str, str]:
    """Read the meanings of fields out of the `Attributes:` of a docstring."""
    _, _, section = (inspect.getdoc(config_class) or "").partition("Attributes:\n")
    entries = re.findall(r"^    (\w+): (.*(?:\n {5,}.*)*)", section, flags=re.MULTILINE)
    return {name: " ".join(text.split()) for name, text in entries}
