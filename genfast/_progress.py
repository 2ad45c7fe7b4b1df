"""tqdm's progress bar, for terminals and notebooks, without the warning it may greet with."""

import warnings

from tqdm import TqdmWarning

with warnings.catch_warnings():
    # In a notebook without ipywidgets tqdm.auto warns, then falls back to text, which is fine.
    warnings.simplefilter("ignore", category=TqdmWarning)
    from tqdm.auto import tqdm as tqdm
