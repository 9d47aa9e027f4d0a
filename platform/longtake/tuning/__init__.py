"""Many trainings: the space, the study and its journal, and Ray Tune that plays it."""
