"""Mixtures of experts: how many there are, and how a token's are chosen and weighted."""

from __future__ import annotations

import dataclasses
from typing import Literal, get_args

from ..arguments import as_flag, as_size, check_word

Probabilities = Literal["all", "chosen"]


@dataclasses.dataclass(frozen=True)
class Experts:
    """A feedforward of several experts, of which a router chooses a few for each token.

    Each expert is a feedforward of width `ModelConfig.d_ff`. No token is dropped. Beside its experts, a
    token may have a feedforward that all tokens share, as in Qwen 1.5 and 2.

    Attributes:
      count: experts of a layer.
      per_token: how many of them a token has: those with the largest logits of the router.
      probabilities: the weights of a token's experts: softmax over the logits of "all" experts, of which
        those of the chosen ones are taken as they are; or over the logits of the "chosen" ones, which
        are also the former divided by their sum.
      router_bias: whether the router's logits have a bias.
      shared_width: of the feedforward that all tokens have, whose result is added to that of their
        experts; None for none.
      shared_router: whether this result is multiplied by the sigmoid of a logit of each token.

    Raises:
      ValueError: a size is not a positive integer, a word is not one of those above, a token would
        have more experts than there are, or `shared_router` has nothing to weigh.
    """

    count: int
    per_token: int
    probabilities: Probabilities = "chosen"
    router_bias: bool = False
    shared_width: int | None = None
    shared_router: bool = False

    def __post_init__(self) -> None:
        for field in ("count", "per_token"):
            object.__setattr__(self, field, as_size(f"Experts: {field}", getattr(self, field)))
        check_word("Experts: probabilities", self.probabilities, get_args(Probabilities))
        for field in ("router_bias", "shared_router"):
            object.__setattr__(self, field, as_flag(f"Experts: {field}", getattr(self, field)))
        if self.shared_width is not None:
            width = as_size("Experts: shared_width", self.shared_width)
            object.__setattr__(self, "shared_width", width)
        elif self.shared_router:
            raise ValueError(
                "Experts: shared_router weighs the result of a shared feedforward, but there is none, "
                "with shared_width=None; give shared_width, or shared_router=False"
            )
        if self.per_token > self.count:
            raise ValueError(
                f"Experts: per_token={self.per_token} is more than count={self.count}, the experts "
                f"that there are; make it at most {self.count}"
            )
