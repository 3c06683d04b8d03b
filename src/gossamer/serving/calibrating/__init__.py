"""Which key heads of a model may stream: gates, trained on texts with hidden pass keys."""
