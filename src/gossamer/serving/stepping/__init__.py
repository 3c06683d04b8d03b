"""A pass through the model: who has a part in it, and the ranks that divide the model."""
