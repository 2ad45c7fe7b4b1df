"""Datasets: integer grey levels in memory, from files that are not trusted.

Nothing is downloaded, extracted or unpickled. A file that is not what it claims to be is a
`DataError` that names the file, what was expected and what was found.
"""

from genfast.data.batches import batches
from genfast.data.cifar import cifar
from genfast.data.convert import Data, as_images
from genfast.data.dataset import ImageDataset
from genfast.data.digits import digits
from genfast.data.folder import folder
from genfast.data.idx import idx
from genfast.data.npz import npz
from genfast.data.open import open_data

__all__ = [
    "Data",
    "ImageDataset",
    "as_images",
    "batches",
    "cifar",
    "digits",
    "folder",
    "idx",
    "npz",
    "open_data",
]
