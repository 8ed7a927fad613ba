"""Silence for toolkits, which say much that is of no use here: progress, advice, time stamps."""

from __future__ import annotations

import io
import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout

# Nothing that runs here reports to anyone; NNCF asks only these two.
OPT_OUT = {"NNCF_CI": "1", "DO_NOT_TRACK": "1"}


@contextmanager
def silence() -> Iterator[None]:
    """Keep what is printed, logged or warned in the block from the reader; errors still raise."""
    for name, value in OPT_OUT.items():
        os.environ.setdefault(name, value)
    logging.getLogger("torch.utils._pytree").setLevel(logging.ERROR)  # speaks at torchao's import
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    heard = io.StringIO()
    try:
        with redirect_stdout(heard), redirect_stderr(heard), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
