"""`longtake export`: a trained model as a folder, with its card, and on the hub."""
