"""The packages that a cached row depends on."""

# A compiled program and its replay are made from the sources of these packages.
SOURCES = ("collective_einsum", "layouts", "bench")
