"""JAX in strict mode for every test; two host devices, as on the machines we test on."""

import contextlib
import gc
import importlib
from collections.abc import Iterator

import jax
import pytest

from polar_jax import programs

jax.config.update("jax_num_cpu_devices", 2)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")
# It sets logging up when it is first imported, and closes every handler that is there: within a
# test these are pytest's, and all tests after it would fail.
with contextlib.suppress(ImportError):
    importlib.import_module("submitit")


@pytest.fixture(scope="module", autouse=True)
def _programs_of_one_file() -> Iterator[None]:
    """Forgets compiled programs after each file.

    Each is mapped into memory in pieces, and a process may have 65,530 of them (Linux): past that
    the compiler crashes.
    """
    yield
    programs.forget()
    jax.clear_caches()
    gc.collect()
