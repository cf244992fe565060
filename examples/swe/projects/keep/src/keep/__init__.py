"""A cache that forgets."""

from keep.cache import Cache
from keep.keys import make_key
from keep.remember import remember
from keep.stats import Stats

__all__ = ["Cache", "Stats", "make_key", "remember"]
