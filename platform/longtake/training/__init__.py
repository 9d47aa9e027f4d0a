"""One training: its workers, its engine, its checkpoints, its progress."""
