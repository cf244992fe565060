"""The policy: a hybrid of lightning and softmax attention with experts. Imports torch and nothing of ours."""

from model.cache import HybridCache
from model.checkpoint import load_pretrained, save_pretrained, write_pretrained
from model.config import HybridConfig
from model.errors import ModelError
from model.hybrid import HybridLM
from model.moe import Routing
from model.tokenizer import Tokenizer

__all__ = [
    "HybridCache",
    "HybridConfig",
    "HybridLM",
    "ModelError",
    "Routing",
    "Tokenizer",
    "load_pretrained",
    "save_pretrained",
    "write_pretrained",
]
