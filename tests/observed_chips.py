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
# Four chips of each kind.
SLICES = {
    "v4": "v4:2x2x1",
    "v5p": "v5p:2x2x1",
    "v5e": "v5e:2x2",
    "v6e": "v6e:2x2",
    "tpu7x": "tpu7x:2x2x1",
}
VERSIONS = ("0.0.42.1", "0.0.50.1")  # of libtpu
