"""`genfast evaluate`."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

from genfast.cli._data import DataOptions, read_note
from genfast.cli._help import option
from genfast.cli._options import (
    DATA_GROUP,
    SPEC_HELP,
    Channels,
    Device,
    FollowLinks,
    MaxBytes,
    Run,
    Size,
)
from genfast.errors import InputError


def evaluate(
    run: Run,
    data: Annotated[
        str | None,
        option(
            metavar="SPEC",
            help=f"{SPEC_HELP} (default: what the run was trained on).",
            group=DATA_GROUP,
        ),
    ] = None,
    split: Annotated[
        str,
        option(
            metavar="NAME",
            help="What of the data to judge on: 'test', 'valid', 'train' or 'all' (default test; "
            "data without one have a fixed tenth held out as test).",
            group=DATA_GROUP,
        ),
    ] = "test",
    size: Size = None,
    channels: Channels = None,
    max_bytes: MaxBytes = None,
    follow_links: FollowLinks = False,
    json_file: Annotated[
        Path | None,
        option(
            "--json",
            metavar="FILE",
            help="Where to write all figures; '-' prints them instead of the table (default "
            "RUN/evaluation.json).",
        ),
    ] = None,
    samples: Annotated[
        int | None,
        option(
            metavar="N",
            help="Images to draw and judge, from 20 (default: as many as there are test images, "
            "at most 1000).",
        ),
    ] = None,
    classifier: Annotated[
        list[str] | None,
        option(
            metavar="NAME",
            help="For the two-sample test: 'mlp', 'logistic', 'forest' or 'knn'; may be repeated "
            "(default: the first three).",
        ),
    ] = None,
    seed: Annotated[
        int,
        option(
            metavar="N",
            help="Decides samples, classifiers and the noise in a bound, from 0 (default 0).",
        ),
    ] = 0,
    batch_size: Annotated[
        int, option(metavar="N", help="Images in the model at a time (default 256).")
    ] = 256,
    device: Device = "auto",
) -> None:
    """Judge a trained model on images it has not seen.

    Reports what the model supports of: bits per dimension and log-likelihood (exact or a bound),
    reconstruction error, how often a classifier tells its samples from real images, their
    sharpness against the data's, and what a sample costs.
    """
    if batch_size < 1:
        raise InputError(f"evaluate: expected --batch-size of at least 1, got {batch_size}")
    if not 0 <= seed < 2**32:
        raise InputError(f"evaluate: expected --seed in [0, 2**32), got {seed}")
    from genfast._files import encode_json, make_folder, write_atomic
    from genfast.evaluation import CLASSIFIERS, generate
    from genfast.evaluation import evaluate as judge
    from genfast.training import load

    unknown = [name for name in classifier or [] if name not in CLASSIFIERS]
    if unknown:
        known = ", ".join(CLASSIFIERS)
        raise InputError(f"evaluate: expected --classifier among {known}, got {unknown[0]!r}")
    model = load(run, device=device)
    if model.domain != "images":
        kind = type(model).__name__
        raise InputError(f"evaluate: expected a model of images, got {kind}, a model of sounds")
    source = _source(run, DataOptions(data or "", size, channels, max_bytes, follow_links))
    test = source.open(split)
    options: dict[str, Any] = {"classifiers": classifier} if classifier else {}
    if samples is not None:
        if samples < 1:
            raise InputError(f"evaluate: expected --samples of at least 1, got {samples}")
        options["generated"] = generate(model, samples, seed=seed, batch_size=batch_size)
    result = judge(model, test, seed=seed, batch_size=batch_size, **options)
    result |= {
        "run": str(run),
        "data": {"name": test.name, "split": split, "count": len(test), "levels": test.levels},
    }
    content = encode_json(result)
    if json_file == Path("-"):
        print(content.decode(), end="")
        return
    target = json_file or run / "evaluation.json"
    make_folder(target.parent)
    write_atomic(target, content)
    print("\n".join(table(result)))
    print(f"\nall figures: {target}")


def _source(run: Path, given: DataOptions) -> DataOptions:
    if given.spec:
        return given
    noted = read_note(run)
    if noted is None:
        raise InputError(f"evaluate: expected --data, as {run} does not say what it was trained on")
    return noted


def table(result: dict[str, Any]) -> list[str]:
    """Lay out the result of `genfast.evaluation.evaluate` for a person."""
    data = result["data"]
    head = f"{result['family']} on {data['count']} images of {data['name']} ({data['split']})"
    rows = list(_rows(result))
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    return [head, "", *(f"  {a:<{widths[0]}}  {b:>{widths[1]}}  {c}".rstrip() for a, b, c in rows)]


def _rows(result: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Yield what was measured, its value, and what the value means."""
    likelihood, reconstruction = result["likelihood"], result["reconstruction"]
    if likelihood is not None:
        exact = likelihood["kind"] == "exact"
        bits, nats = likelihood["bits_per_dim"], likelihood["nats"]
        of_bits = "exact" if exact else "upper bound, from the ELBO"
        of_nats = "nats per image, exact" if exact else "nats per image, ELBO"
        yield (
            "bits per dimension",
            f"{bits['value']:.4f}",
            f"+- {bits['standard_error']:.4f}, {of_bits}",
        )
        yield (
            "log-likelihood",
            f"{nats['value']:.2f}",
            f"+- {nats['standard_error']:.2f}, {of_nats}",
        )
    if reconstruction is not None:
        meaning = f"squared, of grey in [0, 1]; root: {reconstruction['rmse_levels']:.2f} levels"
        yield "reconstruction error", f"{reconstruction['mse']:.5f}", meaning
    for name, found in result["two_sample"].items():
        interval = f"[{found['low']:.3f}, {found['high']:.3f}], 0.5 is indistinguishable from real"
        yield f"two-sample accuracy, {name}", f"{found['accuracy']:.3f}", interval
    ratio = result["sharpness"]["ratio"]
    if ratio is not None:
        yield "sharpness", f"{ratio:.3f}", "of the data's"
    cost = result["sampling"]
    passes = cost["forward_passes"]
    meaning = f"ms per image in a batch of {cost['batch']}"
    if passes is not None:
        meaning += f", {passes} forward pass{'es' if passes != 1 else ''}"
    yield "sampling", f"{1000 * cost['seconds_per_image']:.3g}", meaning
    yield "parameters", f"{result['parameters']:,}", ""
