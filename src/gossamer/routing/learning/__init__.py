"""Teaching routers and models: batches, losses, the budget, and what became of it."""
