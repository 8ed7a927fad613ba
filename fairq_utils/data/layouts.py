"""What a layout of a collection holds, whichever files it comes in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fairq_utils.data.image_files import FileBytes
from fairq_utils.data.listing import Finding
from fairq_utils.data.parquet_images import ParquetBytes


@dataclass(frozen=True)
class Held:
    """What one layout of a collection holds, before anything is asked of it.

    Attributes
    ----------
    layout : its name
    read : gives the encoded bytes of picture ``i``
    files, keys : N names, and what decides a picture's split
    labels : attribute -> (N,) booleans or codes
    official : array of str (N,)
        The split that the collection itself puts each picture in.
    findings : what cannot be used, and why
    """

    layout: str
    read: FileBytes | ParquetBytes
    files: list[str]
    keys: list[str]
    labels: dict[str, NDArray[Any]]
    official: NDArray[np.str_]
    findings: list[Finding]
