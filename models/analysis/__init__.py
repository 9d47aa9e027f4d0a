"""What a model costs, how far it sees, how many parameters it has."""
