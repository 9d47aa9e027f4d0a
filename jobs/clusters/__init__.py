"""`longtake submit|jobs|logs|stop` and `longtake cluster`: verbs on other machines."""
