"""A trajectory in, a score and its parts out."""
