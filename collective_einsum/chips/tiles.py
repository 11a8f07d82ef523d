"""Sizes of the tiles that a TPU computes with and stores arrays in.

https://docs.jax.dev/en/latest/pallas/tpu/details.html describes both.
"""

from __future__ import annotations

# Rows and columns of the matrix unit's tiles: a dot whose dimensions are multiples of it wastes no
# arithmetic, so chunks begin and end between them. (v6e's unit has 256.)
MATRIX_TILE = 128

# An array of 32 bits is stored in tiles of this many rows (its last dimension but one) ...
TILE_ROWS = 8

# ... by this many lanes (its last dimension).
TILE_LANES = 128
