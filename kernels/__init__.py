"""Arithmetic. Only kernels.triton is Python; it is installed as genfast.kernels.triton."""
