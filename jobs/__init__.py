"""The jobs room: the verbs of the command line. It imports every other room; nothing imports it."""
