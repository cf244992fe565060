"""Text to token ids and back, saved as a standard tokenizer.json that other software reads.

`Tokenizer.bytes_and_words` makes a tokenizer without training: one token per byte, so that any text can be
written, and one token for each of a few words that a task uses often. A long text can come in pieces
(`Tokenizer.encode_pieces`).
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from model.errors import ModelError

if TYPE_CHECKING:  # a machine that only trains may lack tokenizers, and the rest of the model must import there
    import tokenizers

PAD, EOS, THINK, END_THINK = "<pad>", "<eos>", "<think>", "</think>"
DEFAULT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
PIECE = 1 << 14
"""Characters that are encoded at once: the library keeps some hundred bytes per token until it is done."""

TOKENIZER_FILE, CONFIG_FILE = "tokenizer.json", "tokenizer_config.json"


class Tokenizer:
    """A `tokenizers.Tokenizer` with an end token and a chat template.

    Attributes:
        eos_token, pad_token: special tokens; `decode` drops them.
        eos_id, pad_id: their ids; pad_id is None if there is no such token.
        chat_template: jinja2 source for `render`.
    """

    def __init__(
        self,
        tokenizer: tokenizers.Tokenizer,
        eos_token: str = EOS,
        pad_token: str | None = PAD,
        chat_template: str = DEFAULT_TEMPLATE,
    ) -> None:
        self._tokenizer = tokenizer
        self.eos_token = eos_token
        self.pad_token = pad_token
        self.chat_template = chat_template
        self.eos_id = self.token_id(eos_token)
        self.pad_id: int | None = None if pad_token is None else tokenizer.token_to_id(pad_token)

    @classmethod
    def bytes_and_words(cls, words: Sequence[str] = ()) -> Tokenizer:
        """256 byte tokens, <pad>, <eos>, <think>, </think>, and one token for each of `words` (ASCII)."""
        for word in words:
            if not word or not word.isascii():
                raise ModelError(
                    f"A word that is a token of its own must be non-empty ASCII, because the byte decoder would "
                    f"garble others, not {word!r}; leave it to the byte tokens."
                )
        import tokenizers
        from tokenizers import AddedToken, decoders, models, pre_tokenizers

        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        model = models.BPE(vocab={symbol: i for i, symbol in enumerate(alphabet)}, merges=[])
        tokenizer = tokenizers.Tokenizer(model)
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        tokenizer.decoder = decoders.ByteLevel()
        tokenizer.add_special_tokens([PAD, EOS])
        tokenizer.add_tokens([AddedToken(word, normalized=False) for word in (THINK, END_THINK, *words)])
        return cls(tokenizer)

    @classmethod
    def load(cls, folder: str | Path) -> Tokenizer:
        """Read tokenizer.json and tokenizer_config.json; ModelError if one is missing or damaged."""
        import tokenizers

        folder = Path(folder)
        for name in (TOKENIZER_FILE, CONFIG_FILE):
            if not (folder / name).is_file():
                raise ModelError(f"A model folder needs {name}, but {folder / name} does not exist; check the path.")
        try:
            tokenizer = tokenizers.Tokenizer.from_file(str(folder / TOKENIZER_FILE))
            config = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
        except Exception as error:  # tokenizers raises plain Exception
            raise ModelError(f"The tokenizer in {folder} is damaged ({error}); write or download it again.") from error
        eos = _token_text(config.get("eos_token"))
        if eos is None:
            raise ModelError(f"{folder / CONFIG_FILE} must name an eos_token, or generation would never end.")
        template = config.get("chat_template") or DEFAULT_TEMPLATE
        return cls(tokenizer, eos, _token_text(config.get("pad_token")), template)

    def save(self, folder: str | Path) -> None:
        """Write tokenizer.json and tokenizer_config.json, as transformers' PreTrainedTokenizerFast reads them."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self._tokenizer.save(str(folder / TOKENIZER_FILE))
        config = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "eos_token": self.eos_token,
            "pad_token": self.pad_token,
            "clean_up_tokenization_spaces": False,
            "chat_template": self.chat_template,
        }
        (folder / CONFIG_FILE).write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

    @property
    def vocab_size(self) -> int:
        """Number of ids, added tokens included."""
        return int(self._tokenizer.get_vocab_size(with_added_tokens=True))

    def token_id(self, token: str) -> int:
        """The id of one token by its text; ModelError if there is none."""
        found: int | None = self._tokenizer.token_to_id(token)
        if found is None:
            raise ModelError(f"The tokenizer has {self.vocab_size} tokens, but {token!r} is none of them.")
        return found

    def ids_of(self, tokens: Iterable[str]) -> list[int]:
        """The ids of those of `tokens` that there are."""
        found = [self._tokenizer.token_to_id(token) for token in tokens]
        return [token_id for token_id in found if token_id is not None]

    def encode(self, text: str) -> list[int]:
        """Ids of `text`; nothing is added at either end."""
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def encode_untrusted(self, text: str) -> list[int]:
        """Ids of a stranger's text, none of them that of an added token: what reads like one is spelt.

        So a program that prints <eos> or </think> ends and closes nothing.
        """
        # A text that is cut after each word's first character holds the words no more.
        cuts = [0, *(match.start() + 1 for match in self._added.finditer(text)), len(text)]
        ids = (i for start, stop in itertools.pairwise(cuts) for i in self.encode(text[start:stop]))
        return [i for i in ids if i not in self._added_ids]

    def encode_pieces(self, pieces: Iterable[str]) -> Iterator[list[int]]:
        """Ids of the text that `pieces` are cut from, in lists: together exactly what `encode` gives for the whole.

        A tokenizer of bytes and words takes each piece as it comes and holds back only what may be the beginning of
        a word. Any other one (merges, a regular expression that cuts the text) may look arbitrarily far ahead, so
        there the text is put together first.
        """
        if self._words is None:
            yield self.encode("".join(pieces))
            return
        rest = ""
        for piece in pieces:
            for start in range(0, len(piece), PIECE):
                text = rest + piece[start : start + PIECE]
                stop = self._settled(text, *self._words)
                if stop:
                    yield self.encode(text[:stop])
                rest = text[stop:]
        if rest:
            yield self.encode(rest)

    @staticmethod
    def _settled(text: str, words: re.Pattern[str], beginnings: frozenset[str], longest: int) -> int:
        """How much of `text` no continuation can change: up to where a word may have begun.

        Words are found from the left, the longest first, so one that is whole may still become a longer one, and one
        that begins inside another does not count.
        """
        stop = max(0, len(text) - longest + 1)  # what starts before it is whole
        for match in words.finditer(text):
            if match.start() >= stop:
                break
            stop = max(stop, match.end())
        while stop < len(text) and text[stop:] not in beginnings:
            word = words.match(text, stop)
            stop = word.end() if word else stop + 1
        return stop

    @cached_property
    def _added_ids(self) -> frozenset[int]:
        return frozenset(self._tokenizer.get_added_tokens_decoder())

    @cached_property
    def _added(self) -> re.Pattern[str]:
        """What finds every place where an added token begins, also inside another; a lone character is no word."""
        words = {token.content for token in self._tokenizer.get_added_tokens_decoder().values()}
        return re.compile("|".join(f"(?={re.escape(word)})" for word in sorted(words) if len(word) > 1) or r"(?!)")

    @cached_property
    def _words(self) -> tuple[re.Pattern[str], frozenset[str], int] | None:
        """Added tokens (what finds them, all their beginnings, their greatest length); None if merges, a regular
        expression or a rule about white space decide too, so that they alone do not tell where a text can be cut."""
        layout = json.loads(self._tokenizer.to_str())
        before, model = layout["pre_tokenizer"] or {}, layout["model"]
        is_plain = (
            layout["normalizer"] is None
            and (before.get("type"), before.get("use_regex"), before.get("add_prefix_space"))
            == ("ByteLevel", False, False)
            and (model.get("type"), model.get("merges"), model.get("ignore_merges")) == ("BPE", [], False)
        )
        rules = ("lstrip", "rstrip", "single_word")
        if not is_plain or any(token[rule] for token in layout["added_tokens"] for rule in rules):
            return None
        words = sorted((token["content"] for token in layout["added_tokens"]), key=len, reverse=True)
        beginnings = frozenset(word[:length] for word in words for length in range(1, len(word)))
        return re.compile("|".join(map(re.escape, words)) or r"(?!)"), beginnings, len(words[0]) if words else 1

    def decode(self, ids: Sequence[int]) -> str:
        """Text of `ids`, without special tokens; thinking tags and words stay visible."""
        text: str = self._tokenizer.decode(list(ids), skip_special_tokens=True)
        return text

    def render(self, messages: Sequence[Mapping[str, str]]) -> str:
        """The chat template's text for `messages` (role and content), up to where the assistant speaks.

        A template comes with a downloaded model, so it runs in jinja2's sandbox. Raises ModelError if it fails.
        """
        import jinja2  # torch depends on it, and only chat prompts need it
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        def raise_exception(message: str) -> None:
            raise jinja2.TemplateError(message)

        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
        environment.globals["raise_exception"] = raise_exception
        try:
            template = environment.from_string(self.chat_template)
            return template.render(
                messages=[dict(message) for message in messages],
                add_generation_prompt=True,
                eos_token=self.eos_token,
                pad_token=self.pad_token,
                bos_token="",
            )
        except (jinja2.TemplateError, TypeError) as error:
            raise ModelError(f"The chat template cannot render these messages: {error}.") from error


def _token_text(value: str | Mapping[str, str] | None) -> str | None:
    """A token in tokenizer_config.json is its text, or an object with the text under "content"."""
    return value["content"] if isinstance(value, Mapping) else value
