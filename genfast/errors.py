"""The exceptions genfast raises on purpose. Catch `GenfastError` to catch them all."""


class GenfastError(Exception):
    """Base of every exception that genfast raises on purpose."""


class InputError(GenfastError, ValueError):
    """An argument breaks a rule; the message says which rule and what came."""


class DataError(GenfastError):
    """A data file or dataset is not what it claims to be."""


class CheckpointError(GenfastError):
    """A checkpoint is missing, corrupt, foreign, or belongs to another model."""


class NumericsError(GenfastError, ArithmeticError):
    """A loss or gradient stopped being finite; the message names the step and the tensor."""


class UnsupportedModelError(GenfastError):
    """A model that `compile_sampler` cannot take; the message names the operation and its line."""


class CausalityError(GenfastError):
    """A model whose output looks at what is not drawn yet; `report` says where."""

    def __init__(self, report: object) -> None:
        super().__init__(str(report))
        self.report = report


class ExactnessError(GenfastError, ArithmeticError):
    """A compiled sampler and its model disagree: never returned, always raised."""


class BuildError(GenfastError, ImportError):
    """The compiled extension cannot be used."""


class NotBuiltError(BuildError):
    """There is no compiled extension beside the package."""


class BuildMismatchError(BuildError):
    """The compiled extension was built for another version of torch."""
