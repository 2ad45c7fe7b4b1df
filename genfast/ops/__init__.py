"""The fused operators. Each file holds one op: its meaning, its reference, its registrations."""

from genfast.ops.categorical_nll import categorical_nll as categorical_nll
from genfast.ops.categorical_nll import categorical_nll_reference as categorical_nll_reference
from genfast.ops.causal_conv1d import causal_conv1d as causal_conv1d
from genfast.ops.causal_conv1d import causal_conv1d_reference as causal_conv1d_reference
from genfast.ops.gan_loss import gan_loss as gan_loss
from genfast.ops.gan_loss import gan_loss_reference as gan_loss_reference
from genfast.ops.gated_activation import gated_activation as gated_activation
from genfast.ops.gated_activation import (
    gated_activation_reference as gated_activation_reference,
)
from genfast.ops.logistic_mixture_nll import logistic_mixture_nll as logistic_mixture_nll
from genfast.ops.logistic_mixture_nll import (
    logistic_mixture_nll_reference as logistic_mixture_nll_reference,
)
from genfast.ops.masked_conv2d import live_taps as live_taps
from genfast.ops.masked_conv2d import masked_conv2d as masked_conv2d
from genfast.ops.masked_conv2d import masked_conv2d_reference as masked_conv2d_reference
from genfast.ops.philox import philox_normal as philox_normal
from genfast.ops.philox import philox_reference as philox_reference
from genfast.ops.philox import philox_uniform as philox_uniform
from genfast.ops.reparameterize import reparameterize as reparameterize
from genfast.ops.reparameterize import reparameterize_reference as reparameterize_reference
