"""genfast: fast kernels, models and samplers for the four classic families of generative models."""

from genfast import ops as ops
from genfast._version import __version__ as __version__
from genfast.errors import GenfastError as GenfastError
