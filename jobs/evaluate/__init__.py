"""`longtake evaluate`."""
