"""Faster forms of `simulate.run_rounds`: same arguments, same results."""
