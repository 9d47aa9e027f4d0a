"""`longtake results`."""
