"""The sharded layers: attention, feedforward, block, embedding, and the key/value cache."""

from .two_part_feedforward import split_feedforward as split_feedforward

__all__ = ["split_feedforward"]
