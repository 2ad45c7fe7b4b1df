"""Triton kernels. Importing this package registers them where no CUDA kernel holds the key.

It is imported at one place, genfast/_extension.py, and only on a torch built for CUDA.
"""

import torch

from . import gan_loss, masked_conv2d, philox, reparameterize
from .launch import on_device_of_tensors

# op of the dispatcher -> launcher with the op's own signature
_LAUNCHERS = {
    "gan_loss": gan_loss.gan_loss,
    "_gan_loss_with_slope": gan_loss.gan_loss_with_slope,
    "_gan_loss_backward": gan_loss.gan_loss_backward,
    "_gan_loss_double_backward": gan_loss.gan_loss_double_backward,
    "masked_conv2d": masked_conv2d.masked_conv2d,
    "_masked_conv2d_grad_input": masked_conv2d.masked_conv2d_grad_input,
    "_masked_conv2d_grad_weight": masked_conv2d.masked_conv2d_grad_weight,
    "philox_fill": philox.philox_fill,
    "reparameterize": reparameterize.reparameterize,
    "_reparameterize_backward": reparameterize.reparameterize_backward,
}

for _name, _launcher in _LAUNCHERS.items():
    if not torch._C._dispatch_has_kernel_for_dispatch_key(f"genfast::{_name}", "CUDA"):
        torch.library.impl(f"genfast::{_name}", "CUDA", on_device_of_tensors(_launcher))
