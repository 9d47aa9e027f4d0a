"""`longtake serve`: a trained world for a team: sessions with memories of their own, on replicas that may be lost."""
