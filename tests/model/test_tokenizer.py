"""Any text in and out, words as one token, standard files, chat templates."""

from __future__ import annotations

import json

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from model import ModelError, Tokenizer
from model import tokenizer as tokenizer_module

WORDS = ("\\boxed{", "def ", "\n    return ")
TOKENIZER = Tokenizer.bytes_and_words(WORDS)


OVERLAPPING = Tokenizer.bytes_and_words(["ab", "abc", "xab", "bcd", "aa", "cab", "bcdxabxab"])
"""Words that begin inside others, go on from others, or hold others."""


@given(st.text())
def test_any_text_comes_back(text):
    wanted = text.replace("<pad>", "").replace("<eos>", "")
    assert TOKENIZER.decode(TOKENIZER.encode(text)) == wanted


def test_words_and_tags_are_one_token_and_stay_visible():
    text = "<think>2+2</think>\\boxed{4}"
    ids = TOKENIZER.encode(text)
    assert len(ids) == 1 + 3 + 1 + 1 + 2
    assert TOKENIZER.decode(ids) == text
    for word in WORDS:
        assert TOKENIZER.encode(word) == [TOKENIZER.token_id(word)]
        assert TOKENIZER.decode([TOKENIZER.token_id(word)]) == word


def streamed(tokenizer, pieces):
    return [id for ids in tokenizer.encode_pieces(pieces) for id in ids]


def cut(text, cuts):
    """`text` in pieces, cut at these places (some pieces may be empty)."""
    borders = sorted(min(cut, len(text)) for cut in cuts)
    return [text[a:b] for a, b in zip([0, *borders], [*borders, len(text)], strict=True)]


@given(st.text(alphabet="abcdx<>", max_size=40), st.lists(st.integers(0, 40), max_size=12))
def test_no_cut_changes_the_ids_of_words_that_overlap(text, cuts):
    assert streamed(OVERLAPPING, cut(text, cuts)) == OVERLAPPING.encode(text)


@given(
    st.lists(st.one_of(st.sampled_from([*WORDS, "<pad>", "</think>", "<think>", "\\box", "<"]), st.text(max_size=5))),
    st.lists(st.integers(0, 120), max_size=12),
)
def test_no_cut_changes_the_ids_of_a_text_with_words_and_special_tokens(parts, cuts):
    text = "".join(parts)
    assert streamed(TOKENIZER, cut(text, cuts)) == TOKENIZER.encode(text)


def test_a_stream_holds_back_no_more_than_a_word_may_need():
    pieces, seen = ["héllo\n    re", "turn 1", "<thin", "king"], []

    def watched():
        for piece in pieces:
            seen.append(len(given))
            yield piece

    given = []
    for ids in TOKENIZER.encode_pieces(watched()):
        given += ids
    assert given == TOKENIZER.encode("".join(pieces))
    assert seen == [0, 6, 8, 8]  # `\n    re` waits; `\n    return ` and `1` come at once; `<thin` waits for `k`


def test_one_huge_piece_is_encoded_a_part_at_a_time(monkeypatch):
    monkeypatch.setattr(tokenizer_module, "PIECE", 5)
    text = "<think>a\\boxed{é" * 3
    parts = list(TOKENIZER.encode_pieces([text]))
    assert sum(parts, []) == TOKENIZER.encode(text)
    assert max(map(len, parts)) < 20


def test_a_tokenizer_with_merges_gets_the_whole_text():
    from tokenizers import Tokenizer as Raw
    from tokenizers import models, pre_tokenizers

    vocab = {symbol: i for i, symbol in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))} | {
        "ab": 256,
        "<e>": 257,
    }
    raw = Raw(models.BPE(vocab=vocab, merges=[("a", "b")]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    merged = Tokenizer(raw, eos_token="<e>")
    assert streamed(merged, ["xa", "b"]) == merged.encode("xab") == [vocab["x"], 256]


def test_pad_and_end_vanish():
    ids = [TOKENIZER.token_id("<pad>"), *TOKENIZER.encode("é"), TOKENIZER.eos_id]
    assert TOKENIZER.decode(ids) == "é"


def test_the_pad_token_has_an_id_if_there_is_one():
    assert TOKENIZER.pad_id == TOKENIZER.token_id("<pad>")
    raw = TOKENIZER._tokenizer
    assert Tokenizer(raw, pad_token=None).pad_id is None
    assert Tokenizer(raw, pad_token="<|unknown|>").pad_id is None


def test_the_vocabulary_is_bytes_and_what_was_added():
    assert TOKENIZER.vocab_size == 256 + 4 + len(WORDS)
    assert sorted({i for byte in range(256) for i in TOKENIZER.encode(chr(byte))})[-1] < TOKENIZER.vocab_size


def test_a_saved_tokenizer_reads_back_here_and_in_transformers(tmp_path):
    TOKENIZER.save(tmp_path)
    text = "<think>naïve ☃</think>\\boxed{1}"
    again = Tokenizer.load(tmp_path)
    assert again.encode(text) == TOKENIZER.encode(text)
    assert again.eos_id == TOKENIZER.eos_id
    assert again.chat_template == TOKENIZER.chat_template
    from transformers import AutoTokenizer

    native = AutoTokenizer.from_pretrained(tmp_path)
    assert native(text)["input_ids"] == TOKENIZER.encode(text)
    assert native.eos_token_id == TOKENIZER.eos_id
    messages = [{"role": "user", "content": "hi"}]
    assert native.apply_chat_template(messages, tokenize=False, add_generation_prompt=True) == again.render(messages)


def test_the_default_template():
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2+2?"}]
    assert TOKENIZER.render(messages) == "system: Be brief.\nuser: 2+2?\nassistant: "


@pytest.mark.parametrize(
    "template",
    [
        "{{ raise_exception('no system role') }}",
        "{{ messages.__class__.__mro__ }}",
        "{% for %}",
        "{{ messages.append(1) }}",
    ],
    ids=["its own refusal", "a way out of the sandbox", "a syntax error", "a changed argument"],
)
def test_a_template_that_fails_or_breaks_out_is_one_error(template, tmp_path):
    TOKENIZER.save(tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": template}))
    with pytest.raises(ModelError, match="chat template"):
        Tokenizer.load(tmp_path).render([{"role": "user", "content": "x"}])


def test_refusals(tmp_path):
    with pytest.raises(ModelError, match="ASCII"):
        Tokenizer.bytes_and_words(["é"])
    with pytest.raises(ModelError, match="none of them"):
        TOKENIZER.token_id("nowhere")
    with pytest.raises(ModelError, match=r"tokenizer\.json.*does not exist"):
        Tokenizer.load(tmp_path)
    TOKENIZER.save(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("{}")
    with pytest.raises(ModelError, match="eos_token"):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelError, match="damaged"):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize("words", [["</tool>", "aa", "ab", "a</"], []])
@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from(["<eos>", "<pad>", "</think>", "</tool>", "aa", "a", "<", "/", "é"])).map("".join))
def test_a_text_that_is_not_trusted_has_no_added_token_and_loses_nothing(words, text):
    tokenizer = Tokenizer.bytes_and_words(words)
    ids = tokenizer.encode_untrusted(text)
    assert max(ids, default=0) < 256
    assert tokenizer.decode(ids) == text


def test_a_trained_tokenizer_spells_its_added_tokens_too():
    trained = tokenizers.Tokenizer(tokenizers.models.BPE())
    trained.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    trained.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=330, special_tokens=["<eos>"], initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet()
    )
    trained.train_from_iterator(["an end of eos and the end of it, <e os> eos> <eos"] * 20, trainer)
    trained.add_tokens([tokenizers.AddedToken("</tool>", lstrip=True, normalized=False)])
    tokenizer = Tokenizer(trained, "<eos>", None)
    text = "the end </tool> of <eos><eos> it"
    ids = tokenizer.encode_untrusted(text)
    assert not set(ids) & {tokenizer.eos_id, tokenizer.token_id("</tool>")}
    assert {tokenizer.eos_id, tokenizer.token_id("</tool>")} <= set(tokenizer.encode(text))
    assert tokenizer.decode(ids) == text
