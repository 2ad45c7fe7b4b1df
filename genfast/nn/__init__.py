"""Layers that drop into other people's models."""

from genfast.nn.dropout import Dropout as Dropout
from genfast.nn.gan_loss import GANLoss as GANLoss
from genfast.nn.gradient_penalty import gradient_penalty as gradient_penalty
from genfast.nn.gradient_penalty import r1_penalty as r1_penalty
from genfast.nn.logistic_mixture import (
    discretized_logistic_log_prob as discretized_logistic_log_prob,
)
from genfast.nn.logistic_mixture import logistic_mixture_log_prob as logistic_mixture_log_prob
from genfast.nn.logistic_mixture import logistic_mixture_nll as logistic_mixture_nll
from genfast.nn.masked_conv2d import MaskedConv2d as MaskedConv2d
from genfast.nn.masked_conv2d import causal_mask as causal_mask
from genfast.nn.mode import evaluating as evaluating
from genfast.nn.reparameterize import Reparameterize as Reparameterize
