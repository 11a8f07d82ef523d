"""The opcodes of HLO that the replay knows, so that it can name those that it does not.

The names are those of OpenXLA's `xla/hlo/ir/hlo_opcode.h`; asynchronous ones end in `-start`, `-update`
or `-done`.
"""

from __future__ import annotations

# Opcodes that exchange data with the host, or with another program.
HOST = frozenset(("send", "send-done", "recv", "recv-done", "infeed", "outfeed"))

_SUFFIXES = ("-start", "-update", "-done")
_ELEMENTWISE = (
    "abs acos acosh add and asin asinh atan2 atanh bitcast-convert cbrt ceil clamp compare complex "
    "convert cosh cosine count-leading-zeros divide erf exponential exponential-minus-one floor "
    "imag is-finite log log-plus-one logistic maximum minimum multiply negate not or popcnt power "
    "real reduce-precision remainder round-nearest-afz round-nearest-even rsqrt select shift-left "
    "shift-right-arithmetic shift-right-logical sign sine sinh sqrt stochastic-convert subtract tan "
    "tanh xor"
)
_MOVEMENTS = (
    "broadcast concatenate copy dynamic-reshape dynamic-slice dynamic-update-slice gather iota pad "
    "reshape reverse scatter select-and-scatter set-dimension-size slice transpose"
)
_OTHERS = (
    "async batch-norm-grad batch-norm-inference batch-norm-training call cholesky conditional "
    "convolution custom-call dot fft fusion map reduce reduce-window rng rng-bit-generator "
    "rng-get-and-update-state sort topk triangular-solve while"
)
_KNOWN = frozenset(" ".join((_ELEMENTWISE, _MOVEMENTS, _OTHERS)).split())


def is_known(opcode: str) -> bool:
    """Whether the replay knows what an op does that is neither free nor a collective."""
    for suffix in _SUFFIXES:
        opcode = opcode.removesuffix(suffix)
    return opcode in _KNOWN
