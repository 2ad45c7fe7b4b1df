"""The naive loop: one full forward pass a symbol, the oracle and the fallback."""
