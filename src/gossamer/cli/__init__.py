"""The commands. May import everything; each command imports what it needs when it runs."""
