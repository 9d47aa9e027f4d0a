"""Ray's clusters: started here, attached to, described in a file, and sent jobs."""
