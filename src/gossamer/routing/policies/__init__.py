"""Who decides which layers a token runs: the interface `policy`, and its implementations."""
