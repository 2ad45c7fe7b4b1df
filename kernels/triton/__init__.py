"""Triton kernels. Importing this package registers those that hold a dispatcher key."""
