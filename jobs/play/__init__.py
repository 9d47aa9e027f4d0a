"""`longtake play`: a trained world in a page, under one's keys."""
