"""The handwritten digits that ship inside scikit-learn: real data without any download."""

import numpy as np

from genfast.data._splits import check_split
from genfast.data.dataset import ImageDataset
from genfast.errors import InputError

_LEVELS = 17
_TEST_SIZE = 297


def digits(split: str = "train") -> ImageDataset:
    """Return the 8x8 handwritten digits: 1,797 images, 17 grey levels, labels 0 to 9.

    Args:
        split: "train" (1,500 images), "test" (297) or "all"; the split is stratified by label
            and always the same.

    Raises:
        InputError: on any other split.

    Source: E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI Machine
    Learning Repository, 1998 (the test part, as scikit-learn bundles it).
    """
    from sklearn.datasets import load_digits  # slow to import, and needed only here
    from sklearn.model_selection import train_test_split

    check_split("digits", split)
    if split == "valid":
        raise InputError('digits: expected split "train", "test" or "all", got split=\'valid\'')
    pixels, labels = load_digits(return_X_y=True)
    images = pixels.astype(np.uint8).reshape(-1, 1, 8, 8)
    chosen = np.arange(len(images))
    if split != "all":
        halves = train_test_split(chosen, test_size=_TEST_SIZE, random_state=0, stratify=labels)
        chosen = np.sort(halves[split == "test"])
    return ImageDataset(images[chosen], labels[chosen], levels=_LEVELS, name="digits")
