"""The online tuner: which alternative is fastest at this call site, on the user's own data."""
