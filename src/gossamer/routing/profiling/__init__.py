"""What layers contribute, measured on a model as it is."""
