"""Reports, rendered from records alone."""
