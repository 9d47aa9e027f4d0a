"""`longtake up|down`: a warm Ray here; `longtake submit|jobs|logs|stop` and `longtake cluster`: on other machines."""
