"""One operation, the state-space scan, and its backends."""
