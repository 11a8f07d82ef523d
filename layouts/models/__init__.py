"""Models as data: configurations, parameters and how they are stacked and padded."""
