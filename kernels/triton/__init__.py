"""Triton kernels. Importing this package registers them where no CUDA kernel holds the key.

It is imported at one place, genfast/_extension.py, and only on a torch built for CUDA.
"""

import torch

from . import philox, reparameterize

# op of the dispatcher -> launcher with the op's own signature
_LAUNCHERS = {
    "philox_fill": philox.philox_fill,
    "reparameterize": reparameterize.reparameterize,
    "_reparameterize_backward": reparameterize.reparameterize_backward,
}

for _name, _launcher in _LAUNCHERS.items():
    if not torch._C._dispatch_has_kernel_for_dispatch_key(f"genfast::{_name}", "CUDA"):
        torch.library.impl(f"genfast::{_name}", "CUDA", _launcher)
