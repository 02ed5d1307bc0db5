"""Events: what happened, the log of it, and those who are told."""
