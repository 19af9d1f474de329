"""Output whose reader may have gone, as `tee` does at Ctrl-C."""

import contextlib
import os
from typing import TextIO


def detach(stream: TextIO) -> None:
    """Points a stream whose reader has gone at nothing, so that what it holds can be flushed."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
