"""How symbols are drawn from a model's output: one distribution per file."""

from genfast.sampling.distributions.bernoulli import Bernoulli as Bernoulli
from genfast.sampling.distributions.categorical import Categorical as Categorical
from genfast.sampling.distributions.custom import CustomDistribution as CustomDistribution
from genfast.sampling.distributions.distribution import Distribution as Distribution
from genfast.sampling.distributions.gaussian import Gaussian as Gaussian
from genfast.sampling.distributions.logistic_mixture import LogisticMixture as LogisticMixture
