"""`polar-jax bench`: how fast decisions are made, against baselines and the machine's limits."""
