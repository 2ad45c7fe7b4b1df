"""The commands, put together."""

from typing import Annotated

import typer

from genfast._version import __version__
from genfast.cli._help import GroupedCommand
from genfast.cli.bench import bench
from genfast.cli.compare import compare
from genfast.cli.evaluate import evaluate
from genfast.cli.info import info
from genfast.cli.sample import sample
from genfast.cli.train import train

_EXAMPLES = """\b
Examples:
  genfast train pixelcnn --data digits
  genfast train vae --data mnist/ --out runs/vae --set latent_dim=8
  genfast train vae --data mnist/ --out runs/vae --resume
  genfast train wavenet --data words/ --set length=2048
  genfast sample runs/vae -n 64 -o grid.png
  genfast evaluate runs/vae --data mnist/
  genfast compare --data digits --out runs/demo
  genfast bench sampling
  genfast info

`digits` is real data that comes with scikit-learn; nothing is ever downloaded.

genfast COMMAND --help explains every option of a command."""

app = typer.Typer(
    name="genfast",
    help="Train, sample and judge the classic families of generative models.",
    epilog=_EXAMPLES,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"genfast {__version__}")
        raise typer.Exit


@app.callback()
def _top(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Show the version and stop."
        ),
    ] = False,
    traceback: Annotated[
        bool,
        typer.Option(
            "--traceback",
            help="Show where in the code an error came from; may stand anywhere. "
            "GENFAST_TRACEBACK=1 in the environment does the same.",
        ),
    ] = False,
) -> None:
    pass


for _command in (train, sample, evaluate, compare, bench, info):
    app.command(cls=GroupedCommand)(_command)
