"""RunConfig, the parts' own configs put together, and the YAML tree."""
