"""Long texts: attention over pages, and generation."""
