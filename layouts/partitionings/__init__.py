"""The paper's partitionings: how weights, activations and the cache are split over a mesh."""
