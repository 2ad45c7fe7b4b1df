"""What `genfast bench` measures: whole samplers, beside what else one would write in PyTorch."""
