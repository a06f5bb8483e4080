from __future__ import annotations

import io
import json
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conformance import data
from conformance.data import tokenizer as module
from conformance.data.tokenizer import MERGING, SPACE, borders_are_free, line_encoder, load_tokenizer
from conformance.data.words import cut
from conformance.errors import DataError

CORPUS = Path(__file__).resolve().parents[3] / "fixtures" / "corpus" / "corpus.txt"
WORDS = [
    "the",
    "The",
    " ",
    "  ",
    "   ",
    SPACE,
    "\n",
    "\\n",
    ".",
    "...",
    '"}',
    "(",
    "_",
    "0",
    "12",
    "2024",
    "\t",
    "\u00e9",
]
WORDS += ["<s>", "</s>", "<0x0A>", "\x00", "\u4e2d", "\u6587", "\U0001f600", "n't", "://", "\u0301", "\u2028", "\xa0"]
TEXT = st.lists(st.sampled_from(WORDS) | st.text(max_size=6), max_size=40).map("".join)


@cache
def rehearsal():
    return load_tokenizer(data.rehearsal_tokenizer())


@cache
def trained(**options):
    """A small tokenizer of our own."""
    out = io.BytesIO()
    settings = {
        "model_type": "bpe",
        "vocab_size": 700,
        "byte_fallback": True,
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
        "split_digits": True,
        "minloglevel": 2,
    }
    from sentencepiece import SentencePieceProcessor, SentencePieceTrainer

    lines = iter(CORPUS.read_text(encoding="utf-8").splitlines())
    SentencePieceTrainer.train(sentence_iterator=lines, model_writer=out, **{**settings, **options})
    return SentencePieceProcessor(model_proto=out.getvalue())


def test_the_rehearsals_model_is_encoded_by_words(tokenizer):
    assert rehearsal().get_piece_size() == 32000
    assert borders_are_free(rehearsal())


def line(processor, text):
    """What InternEvo's script writes of a text."""
    return (json.dumps({"tokens": [1, *processor.encode(text), 2]}) + "\n").encode()


@settings(deadline=None)
@given(st.text(st.sampled_from("aZ.1 \n\u00e9" + SPACE), min_size=1) | st.text(min_size=1))
def test_a_word_is_never_cut_where_a_piece_may_merge(piece):
    starts, _ = cut(piece.replace(SPACE, " ").encode())
    assert starts.tolist() == [0] or MERGING.search(piece)


@settings(deadline=None)
@given(st.lists(TEXT, max_size=5))
def test_lines_are_what_json_writes(texts):
    expected = [line(rehearsal(), text) for text in texts]
    assert line_encoder(rehearsal())(texts) == b"".join(expected)


@settings(deadline=None)
@given(st.lists(TEXT, max_size=5))
def test_a_model_trained_here_is_encoded_by_words_too(texts):
    assert borders_are_free(trained())
    assert line_encoder(trained())(texts) == b"".join(line(trained(), text) for text in texts)


OTHERS = [
    {"model_type": "unigram", "vocab_size": 690},
    {"byte_fallback": False},
    {"normalization_rule_name": "nmt_nfkc"},
    {"remove_extra_whitespaces": True},
    {"add_dummy_prefix": False},
    {"split_by_whitespace": False},
    {"split_by_unicode_script": False},
    {"user_defined_symbols": ("a.b",)},
    {"user_defined_symbols": ("42",)},
    {"treat_whitespace_as_suffix": True},
]


@pytest.mark.parametrize("options", OTHERS, ids=str)
def test_a_model_that_crosses_a_border_is_used_on_whole_texts(options):
    model = trained(**options)
    assert not borders_are_free(model)
    encode = line_encoder(model)
    texts = ["", " ", "  ", "a.b 42 caf\u00e9", *CORPUS.read_text(encoding="utf-8").splitlines()]
    assert encode(texts) == b"".join(line(model, text) for text in texts)


@pytest.mark.parametrize("piece", ["a.b", ".b", "b_", "a" + SPACE, ". ", "12", SPACE + "1", "\u00e97", "\n", "\n\n"])
@pytest.mark.parametrize("kind", [1, 4, 5])
def test_one_piece_across_a_border_is_enough(piece, kind, tokenizer):
    assert not borders_are_free(with_piece(tokenizer, piece, kind))
    assert borders_are_free(with_piece(tokenizer, "harmless" * 3, kind))


def with_piece(tokenizer, piece, kind):
    """The rehearsal's model with one piece more."""
    from sentencepiece import SentencePieceProcessor

    field = piece.encode()
    message = b"\x0a%c%s\x18%c" % (len(field), field, kind)
    return SentencePieceProcessor(model_proto=tokenizer.read_bytes() + b"\x0a%c%s" % (len(message), message))


@pytest.mark.parametrize("content", [b"", b"no model", None])
def test_what_is_no_model_is_refused(content, tmp_path):
    path = tmp_path / "tokenizer.model"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=r"tokenizer\.model is no sentencepiece model"):
        load_tokenizer(path)


def test_a_model_without_bos_is_refused(tmp_path):
    path = tmp_path / "tokenizer.model"
    path.write_bytes(trained(bos_id=-1).serialized_model_proto())
    with pytest.raises(DataError, match="has no BOS or no EOS"):
        load_tokenizer(path)


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr(module.metadata, "distribution", missing)
    with pytest.raises(DataError, match="mistral-common, which is not installed"):
        data.rehearsal_tokenizer()


def missing(name):
    raise module.metadata.PackageNotFoundError(name)
