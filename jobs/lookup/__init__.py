"""Verbs that look up what there is to choose from: of cards, fields, configs and the machine."""
