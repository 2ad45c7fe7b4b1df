"""Verify: is the compiled sampler the model it was made from?"""
