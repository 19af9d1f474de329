"""`python -m polar_jax` is `polar-jax`."""

import sys

from polar_jax.cli import main

if __name__ == "__main__":
    sys.exit(main())
