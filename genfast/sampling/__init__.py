"""Sampling from autoregressive models."""

from genfast.sampling.naive import sample_naive as sample_naive
