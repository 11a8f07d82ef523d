"""Words of error messages: lists, suggestions, sizes and shardings in print."""
