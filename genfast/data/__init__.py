"""Datasets: integer grey levels or sounds in memory, from files that are not trusted.

Nothing is downloaded, extracted or unpickled. A file that is not what it claims to be is a
`DataError` that names the file, what was expected and what was found.
"""

from genfast.data.batches import batches
from genfast.data.cifar import cifar
from genfast.data.companding import mu_law_decode, mu_law_encode
from genfast.data.convert import Data, as_images
from genfast.data.dataset import ImageDataset
from genfast.data.digits import digits
from genfast.data.folder import folder
from genfast.data.idx import idx
from genfast.data.npz import npz
from genfast.data.open import open_data, open_sounds
from genfast.data.sounds import SoundDataset, crops
from genfast.data.wav import wav

__all__ = [
    "Data",
    "ImageDataset",
    "SoundDataset",
    "as_images",
    "batches",
    "cifar",
    "crops",
    "digits",
    "folder",
    "idx",
    "mu_law_decode",
    "mu_law_encode",
    "npz",
    "open_data",
    "open_sounds",
    "wav",
]
