"""The sharded layers: attention, feedforward, block, embedding, and the key/value cache."""
