"""The artifact store: bytes under the name of their hash."""
