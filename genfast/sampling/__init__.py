"""Sampling from autoregressive models."""

from genfast.sampling.distributions import Bernoulli as Bernoulli
from genfast.sampling.distributions import Categorical as Categorical
from genfast.sampling.distributions import CustomDistribution as CustomDistribution
from genfast.sampling.distributions import Distribution as Distribution
from genfast.sampling.distributions import Gaussian as Gaussian
from genfast.sampling.distributions import LogisticMixture as LogisticMixture
from genfast.sampling.naive.sample import sample_naive as sample_naive
from genfast.sampling.probe.causality import check_causality as check_causality
from genfast.sampling.sampler import Sampler as Sampler
from genfast.sampling.sampler import compile_sampler as compile_sampler
