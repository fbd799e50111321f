"""Hearth beside other servers: the same model, the same client, the same core. `make bench-overhead`."""
