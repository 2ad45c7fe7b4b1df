"""Judging generative models: likelihood, two-sample tests, sharpness, cost, and a report."""

from genfast.evaluation.compare import compare as compare
from genfast.evaluation.demo import DEMO as DEMO
from genfast.evaluation.evaluate import evaluate as evaluate
from genfast.evaluation.evaluate import generate as generate
from genfast.evaluation.metrics import ReconstructionError as ReconstructionError
from genfast.evaluation.metrics import reconstruction_error as reconstruction_error
from genfast.evaluation.metrics import sharpness as sharpness
from genfast.evaluation.two_sample import CLASSIFIERS as CLASSIFIERS
from genfast.evaluation.two_sample import TwoSampleResult as TwoSampleResult
from genfast.evaluation.two_sample import two_sample_test as two_sample_test
