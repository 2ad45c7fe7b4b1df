"""Discretized mixtures of logistics: see `genfast.ops.logistic_mixture_nll`."""

from genfast.ops.logistic_mixture_nll import FORMULAS as FORMULAS
from genfast.ops.logistic_mixture_nll import PER_COMPONENT as PER_COMPONENT
from genfast.ops.logistic_mixture_nll import (
    discretized_logistic_log_prob as discretized_logistic_log_prob,
)
from genfast.ops.logistic_mixture_nll import level_positions as level_positions
from genfast.ops.logistic_mixture_nll import logistic_mixture_log_prob as logistic_mixture_log_prob
from genfast.ops.logistic_mixture_nll import logistic_mixture_nll as logistic_mixture_nll
from genfast.ops.logistic_mixture_nll import shifted_means as shifted_means
from genfast.ops.logistic_mixture_nll import split_mixture as split_mixture
