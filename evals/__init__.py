"""The evals room: tasks and metrics that score memory. It imports `models` and nothing else of ours."""
