"""Foreign data sets that are read as episodes."""
