"""The chips whose compilers were observed, by the short names of their files."""

from __future__ import annotations

import collective_einsum as ce

CHIPS = {
    "v4": ce.TPU_V4,
    "v5p": ce.TPU_V5P,
    "v5e": ce.TPU_V5E,
    "v6e": ce.TPU_V6E,
    "tpu7x": ce.TPU_7X,
}
VERSIONS = ("0.0.42.1", "0.0.50.1")  # of libtpu
