"""polar_jax."""
