"""The tiny model with tokens that mark the parts of a text to be filled in."""

from tiny_model import FIRST_BYTE, TINY, add_vocabulary, write_model

from llamafu.generation.infill import InfillTokens

MARKS = InfillTokens(prefix=FIRST_BYTE + 1, suffix=FIRST_BYTE + 2, middle=FIRST_BYTE + 3)
"""Bytes that no text has."""


def write_infill_model(path):
    """Write the model, and return its path."""

    def vocabulary(writer, _n_vocab):
        add_vocabulary(writer, TINY.merges)
        for key, token in (("fim_pre", MARKS.prefix), ("fim_suf", MARKS.suffix), ("middle", MARKS.middle)):
            writer.add_uint32(f"tokenizer.ggml.{key}_token_id", token)

    write_model(path, TINY, seed=1, name="tiny", vocabulary=vocabulary)
    return path
