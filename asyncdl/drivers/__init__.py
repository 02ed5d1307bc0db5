"""The database drivers: connections, transactions and the translation of their exceptions; nothing else touches them."""
