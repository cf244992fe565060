"""The one error of this package. The model imports nothing of the rest of the project, so it brings its own."""

from __future__ import annotations


class ModelError(ValueError):
    """A configuration, a checkpoint, a state or a request that cannot work; one sentence that says what to do."""
