"""Which clips come when, and how they come."""
