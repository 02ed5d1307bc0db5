"""Components: what users declare, and how it is stored and found again."""
