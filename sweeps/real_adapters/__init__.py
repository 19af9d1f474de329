"""Fifteen real LoRA adapters on a small encoder, and what each of them answers.

`python -m sweeps.real_adapters --help` says how to run it, `docs/real_adapters.md` what came out.
"""
