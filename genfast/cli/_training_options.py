"""The fields of TrainingConfig as options.

Their default is None, not TrainingConfig's: what is not given is not passed on, so that a resumed
run keeps its own settings. The defaults in the texts are compared with TrainingConfig by a test.
"""

from typing import Annotated

from genfast.cli._help import option

OPTIMISATION, RUN = "Optimisation", "Run"

Epochs = Annotated[
    int | None, option(metavar="N", group=OPTIMISATION, help="Passes over the data (default 20).")
]
BatchSize = Annotated[
    int | None, option(metavar="N", group=OPTIMISATION, help="Images per step (default 64).")
]
LearningRate = Annotated[
    float | None,
    option(
        "--learning-rate",
        "--lr",
        metavar="X",
        group=OPTIMISATION,
        help="Step size of the optimizer (default 0.001).",
    ),
]
Optimizer = Annotated[
    str | None,
    option(
        metavar="NAME",
        group=OPTIMISATION,
        help="'adam', 'adamw', 'sgd' or 'rmsprop' (default adam).",
    ),
]
Betas = Annotated[
    tuple[float, float] | None,
    option(
        metavar="B1 B2",
        group=OPTIMISATION,
        help="Decay rates per step of Adam's averages; B1 is also the momentum of sgd, B2 the "
        "decay of rmsprop (default 0.9 0.999; GANs often take 0.5 0.999).",
    ),
]
WeightDecay = Annotated[
    float | None,
    option(
        metavar="X",
        group=OPTIMISATION,
        help="Pull of the weights towards 0, as the optimizer defines it (default 0.0).",
    ),
]
ClipGradNorm = Annotated[
    float | None,
    option(
        metavar="X",
        group=OPTIMISATION,
        help="Largest Euclidean norm of a gradient; 0 does not clip (default 0.0).",
    ),
]
EmaDecay = Annotated[
    float | None,
    option(
        metavar="X",
        group=OPTIMISATION,
        help="Decay per step of a moving average of the weights, which then draws the samples; 0 "
        "keeps none (default 0.0; 0.999 is common).",
    ),
]
Amp = Annotated[
    bool | None,
    option(
        "--amp/--no-amp",
        group=OPTIMISATION,
        help="Automatic mixed precision, faster on GPUs (default no).",
    ),
]
AmpDtype = Annotated[
    str | None,
    option(
        metavar="NAME",
        group=OPTIMISATION,
        help="Of --amp: 'bfloat16', 'float16', or 'auto': bfloat16 where the device has it "
        "(default auto).",
    ),
]
Seed = Annotated[
    int | None,
    option(
        metavar="N",
        group=OPTIMISATION,
        help="Decides initial weights, order of the data and noise; from 0 (default 0).",
    ),
]
Device = Annotated[
    str | None,
    option(
        metavar="NAME",
        group=OPTIMISATION,
        help="'cpu', 'cuda', 'cuda:N', or 'auto': CUDA if present (default auto).",
    ),
]
LogEvery = Annotated[
    int | None, option(metavar="N", group=RUN, help="Steps between rows of the log (default 50).")
]
SampleEvery = Annotated[
    int | None,
    option(
        metavar="N",
        group=RUN,
        help="Steps between grids of samples, with one at the end; 0 draws none (default 500).",
    ),
]
SampleCount = Annotated[
    int | None,
    option(
        metavar="N",
        group=RUN,
        help="Images in such a grid, or sounds of at most a second each; 0 takes 64 images or 8 "
        "sounds (default 0).",
    ),
]
CheckpointEvery = Annotated[
    int | None,
    option(
        metavar="N",
        group=RUN,
        help="Steps between checkpoints; 0 saves only at the start and the end (default 500).",
    ),
]
Keep = Annotated[
    int | None,
    option(metavar="N", group=RUN, help="Newest checkpoints to keep, at least 2 (default 2)."),
]
Progress = Annotated[
    bool | None,
    option(
        "--progress/--no-progress",
        group=RUN,
        help="Show a bar with loss and images per second on standard error (default yes).",
    ),
]
TensorBoard = Annotated[
    bool | None,
    option(
        "--tensorboard/--no-tensorboard",
        group=RUN,
        help="Also log to RUN/tensorboard; needs the package tensorboard (default no).",
    ),
]
