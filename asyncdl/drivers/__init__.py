"""The database drivers: connections, transactions, the translation of their exceptions. Nothing else touches them."""
