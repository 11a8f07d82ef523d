"""Published figures, none of them ours: measured on TPU v4 by the authors of "Efficiently Scaling
Transformer Inference" (arXiv 2211.05102). Where they give a model FLOPS utilization, the seconds are
worked out from that: 2 * parameters * tokens / (chips * peak * MFU), with all parameters and without
padding.
"""

from __future__ import annotations

from collective_einsum import TPU_V4
from layouts import PALM_540B

CHIPS = 64

# Milliseconds a token of decoding, PaLM 540B, 64 chips, context 2048, by weights and batch: the
# layers alone, 2D weight-stationary, attention sharded over batch.
DECODE_MS = {
    ("bf16", 64): 36.23,
    ("bf16", 128): 44.49,
    ("bf16", 256): 56.88,
    ("bf16", 512): 92.16,
    ("int8", 64): 27.85,
    ("int8", 128): 35.99,
    ("int8", 256): 54.99,
    ("int8", 512): 94.52,
}
# Figure 7: MFU of prefill, PaLM 540B, 64 chips, 2048 tokens, bf16, by batch: 2D weight-stationary and
# weight-gathered.
PREFILL_MFU = {64: (0.403, 0.285), 128: (0.401, 0.546), 256: (0.401, 0.740), 512: (0.425, 0.770)}
# Table 2: seconds; those of decoding are of 64 tokens.
LOW_LATENCY_PREFILL, LOW_LATENCY_DECODE = 0.29, 1.82
HIGH_THROUGHPUT_PREFILL, HIGH_THROUGHPUT_DECODE = 85.2, 6.0
DECODED_TOKENS = 64
# Section 4.3: the fraction that a serial block adds to a step of decoding at batch 512.
SERIAL_COST = 0.14
# Figure 3: bytes that a chip sends at 2048 tokens, E = 16384, F = 65536, X = Y = Z = 4, 2 bytes; and
# the tokens from which each layout sends less than the one before it.
VOLUMES = {"WS 2D": 0.0671e9, "WG X": 0.302e9, "WG XY": 1.082e9, "WG XYZ": 4.295e9}
CROSSOVERS = {"X": 16_384, "XY": 65_536, "XYZ": 786_432}
# Table 1: longest context with 30% of memory for the cache, PaLM 540B on 64 chips, by attention and
# batch.
LONGEST_CONTEXT = {
    ("multihead", 128): 1320,
    ("multihead", 512): 330,
    ("multiquery, heads", 128): 660,
    ("multiquery, heads", 512): 165,
    ("multiquery, batch", 128): 43_000,
    ("multiquery, batch", 512): 10_700,
}
CACHE_FRACTION = 0.3


def seconds_of(mfu: float, tokens: int) -> float:
    """The seconds in which PaLM 540B on 64 chips has this MFU."""
    return 2 * PALM_540B.parameters * tokens / (CHIPS * TPU_V4.bf16_flops * mfu)
