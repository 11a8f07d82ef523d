"""The tables and figures of arXiv 2211.05102: published rows, formulas, replays and plots."""
