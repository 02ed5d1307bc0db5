"""Jobs: what is to be done after what has happened."""
