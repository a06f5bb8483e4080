"""Text to InternEvo's lines of token ids, as bytes, several times as fast as the tokenizer alone.

A model of byte-pair encoding merges neighbours into its pieces, and no other way. Where no piece holds two neighbours,
nothing ever merges across the border between them, and a text may be cut there; since words repeat, nearly all of them
are then looked up and not encoded (words.py). LLaMA2's model never joins an ASCII letter to another ASCII sign, a digit
to anything, or a space to what stands before it. Whether a model keeps to this is read from its file; one that does not
is used on whole texts.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from conformance.errors import DataError

if TYPE_CHECKING:
    from sentencepiece import SentencePieceProcessor

# How sentencepiece writes a space.
SPACE = "\u2581"
# Beyond ASCII; these signs merge with others and with letters.
BEYOND = "\x80-\U0010ffff"
# What no piece may hold, or words would merge: a digit beside anything, an ASCII letter beside another ASCII sign, a
# space behind anything but spaces, a newline.
MERGING = re.compile(
    rf"[A-Za-z][^A-Za-z{BEYOND}]|[^A-Za-z{BEYOND}][A-Za-z]|[0-9].|.[0-9]|[^{SPACE}]{SPACE}|[ \n]", re.DOTALL
)
# Of sentencepiece_model.proto: ModelProto, TrainerSpec, NormalizerSpec.
TRAINER, NORMALIZER = 2, 3
MODEL_TYPE, WHITESPACE_AS_SUFFIX, BYTE_FALLBACK = 3, 24, 35
CHARSMAP, DUMMY_PREFIX, REMOVE_SPACES, ESCAPE_SPACES = 2, 3, 4, 5
BPE = 2

Encode = Callable[[list[str]], bytes]


def rehearsal_tokenizer() -> Path:
    """Find a tokenizer of 32000 entries that may be shipped: the first one of the package mistral-common.

    Returns:
        Its model file.

    Raises:
        DataError: The package is not installed.
    """
    # The package's own modules take seconds to import.
    try:
        path = metadata.distribution("mistral-common").locate_file("mistral_common/data/tokenizer.model.v1")
    except metadata.PackageNotFoundError as error:
        raise DataError(
            "The rehearsal's tokenizer comes from the package mistral-common, which is not installed.",
            "Install it: pip install '.[rehearsal]' in the suite's checkout.",
        ) from error
    return Path(str(path))


def load_tokenizer(model: Path) -> SentencePieceProcessor:
    """Load a sentencepiece model.

    Args:
        model: The model file.

    Returns:
        The processor.

    Raises:
        DataError: sentencepiece is not installed, the file is none of its models, or it lacks BOS or EOS.
    """
    try:
        from sentencepiece import SentencePieceProcessor
    except ImportError as error:
        raise DataError(
            "sentencepiece is not installed.", "Install it: pip install '.[data]' in the suite's checkout."
        ) from error
    try:
        processor = SentencePieceProcessor(model_file=str(model))
    except (OSError, RuntimeError) as error:
        raise DataError(
            f"{model} is no sentencepiece model: {str(error).splitlines()[0]}.",
            "Name the file tokenizer.model that belongs to the benchmark's vocabulary.",
        ) from error
    if processor.bos_id() < 0 or processor.eos_id() < 0:
        raise DataError(
            f"{model} has no BOS or no EOS entry; InternEvo's documents begin and end with them.",
            "Name the file tokenizer.model that belongs to the benchmark's vocabulary.",
        )
    return processor


def line_encoder(processor: SentencePieceProcessor) -> Encode:
    """Make the function that turns documents into their lines of a ``.bin`` file.

    Args:
        processor: A loaded tokenizer.

    Returns:
        A function from texts without lone surrogates to ``{"tokens": [BOS, ..., EOS]}`` and a newline for each.
    """
    whole = whole_encoder(processor)
    head, tail = b'{"tokens": [%d,' % processor.bos_id(), b" %d]}\n" % processor.eos_id()
    if borders_are_free(processor):
        from conformance.data.words import word_encoder  # NumPy, which is for the workers alone to import

        return word_encoder(whole, head, tail)
    return lambda texts: b"".join(head + whole(text) + tail for text in texts)


def whole_encoder(processor: SentencePieceProcessor) -> Callable[[str], bytes]:
    """Make the plain way from a text to its ids, `` 1, 2, 3,``; right with every model.

    Args:
        processor: A loaded tokenizer.

    Returns:
        The function.
    """
    written = [b" %d," % number for number in range(processor.get_piece_size())]
    return lambda text: b"".join(map(written.__getitem__, processor.encode(text)))


def borders_are_free(processor: SentencePieceProcessor) -> bool:
    """Tell whether a text may be cut into words, as words.py does, without changing its ids.

    Args:
        processor: A loaded tokenizer.

    Returns:
        True for byte-pair encoding with bytes for unknown signs and a space in front, without other normalisation,
        whose pieces hold spaces only in front, no newline, no digit beside anything, and no ASCII letter beside another
        ASCII sign.
    """
    messages = dict(_fields(processor.serialized_model_proto()))
    trainer, normalizer = (dict(_fields(bytes(messages.get(number, b"")))) for number in (TRAINER, NORMALIZER))
    every = list(range(processor.get_piece_size()))
    signs = zip(processor.is_unknown(every), processor.is_control(every), processor.is_byte(every), strict=True)
    pieces = [piece for piece, sign in zip(processor.id_to_piece(every), signs, strict=True) if not any(sign)]
    return (
        trainer.get(MODEL_TYPE) == BPE
        and trainer.get(BYTE_FALLBACK) == 1
        and not trainer.get(WHITESPACE_AS_SUFFIX, 0)
        and not normalizer.get(CHARSMAP, b"")
        # All three are true where the file does not say.
        and normalizer.get(DUMMY_PREFIX, 1) == 1
        and normalizer.get(REMOVE_SPACES, 1) == 0
        and normalizer.get(ESCAPE_SPACES, 1) == 1
        and not any(map(MERGING.search, pieces))
    )


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Number and value of each field of a message in Protocol Buffers' wire format; the file was loaded before."""
    at = 0

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = message[at]
            at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    while at < len(message):
        key = varint()
        if key & 7 == 0:
            yield key >> 3, varint()
            continue
        size = {1: 8, 5: 4}.get(key & 7) or varint()
        yield key >> 3, message[at : at + size]
        at += size
