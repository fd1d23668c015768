"""Every error that Llamafu raises, on one screen.

`ErrorCode` keeps the numbers of the Dart plugin's C header, so that programs written against those
numbers keep their meaning; our own codes continue at -100. Each exception carries its code in `.code`,
and keeps a builtin base where a caller would naturally catch one.
"""

from __future__ import annotations

from enum import IntEnum


class ErrorCode(IntEnum):
    """Result codes of the native mirror (`llamafu._native`) and of every `LlamafuError`."""

    SUCCESS = 0
    UNKNOWN = -1
    INVALID_PARAM = -2
    MODEL_LOAD_FAILED = -3
    OUT_OF_MEMORY = -4
    MULTIMODAL_NOT_SUPPORTED = -5
    LORA_LOAD_FAILED = -6
    LORA_NOT_FOUND = -7
    GRAMMAR_INIT_FAILED = -8
    CONTEXT_INIT_FAILED = -9
    TOKENIZATION_FAILED = -10
    DECODE_FAILED = -11
    IMAGE_LOAD_FAILED = -20
    IMAGE_FORMAT_UNSUPPORTED = -21
    IMAGE_DECODE_FAILED = -22
    IMAGE_ENCODE_FAILED = -23
    IMAGE_RESIZE_FAILED = -24
    IMAGE_VALIDATION_FAILED = -25
    BASE64_DECODE_FAILED = -26
    BASE64_ENCODE_FAILED = -27
    FILE_NOT_FOUND = -28
    FILE_READ_FAILED = -29
    VISION_INIT_FAILED = -30
    VISION_PROCESS_FAILED = -31
    IMAGE_TOO_LARGE = -32
    IMAGE_TOO_SMALL = -33
    INVALID_DIMENSIONS = -34
    BATCH_PROCESS_FAILED = -35
    ABORTED = -36
    LIBRARY_NOT_FOUND = -100
    ABI_MISMATCH = -101
    LORA_INCOMPATIBLE = -102
    INVALID_ADAPTER_FILE = -103
    INVALID_SCALE = -104
    CLOSED = -105
    CONTEXT_OVERFLOW = -106
    QUEUE_FULL = -107
    STATE_FILE_INVALID = -108
    HUB_FAILED = -109


class LlamafuError(Exception):
    """Base of every error of this package; `.code` is its `ErrorCode`."""

    code: ErrorCode = ErrorCode.UNKNOWN

    def __init__(self, message: str, *, code: ErrorCode | None = None) -> None:
        """Keep `message`; `code` replaces the class's own code where one class covers several."""
        super().__init__(message)
        if code is not None:
            self.code = code


class LibraryNotFoundError(LlamafuError, FileNotFoundError):
    """No usable libllama; the message lists every candidate and why each one failed."""

    code = ErrorCode.LIBRARY_NOT_FOUND


class AbiMismatchError(LlamafuError):
    """A libllama whose binary interface matches no known family, or that mixes with another one."""

    code = ErrorCode.ABI_MISMATCH


class ModelLoadError(LlamafuError):
    """A model file that is missing, damaged or not supported by the library."""

    code = ErrorCode.MODEL_LOAD_FAILED


class ContextInitError(LlamafuError):
    """A context that could not be made, mostly for want of memory."""

    code = ErrorCode.CONTEXT_INIT_FAILED


class DecodeError(LlamafuError):
    """`llama_decode` failed; the message quotes the library's last error line."""

    code = ErrorCode.DECODE_FAILED


class UnsupportedError(LlamafuError, ValueError):
    """Something that this model cannot do, such as answering with an encoder."""

    code = ErrorCode.INVALID_PARAM


class TokenizeError(LlamafuError, ValueError):
    """Text that is none, that the model's vocabulary cannot represent, or that libllama does not live through."""

    code = ErrorCode.TOKENIZATION_FAILED


class GrammarError(LlamafuError, ValueError):
    """A grammar or JSON schema that cannot be parsed or is not supported."""

    code = ErrorCode.GRAMMAR_INIT_FAILED


class MultimodalError(LlamafuError):
    """Media given to a model without a projector, or media that cannot be read."""

    code = ErrorCode.MULTIMODAL_NOT_SUPPORTED


class LoraError(LlamafuError):
    """Base of everything that can go wrong with an adapter."""

    code = ErrorCode.LORA_LOAD_FAILED


class LoraLoadError(LoraError):
    """A checked adapter that libllama refused all the same."""


class LoraNotFoundError(LoraError, KeyError):
    """An adapter name or handle that is not loaded here."""

    code = ErrorCode.LORA_NOT_FOUND
    __str__ = Exception.__str__  # KeyError would print the repr of the message


class LoraIncompatibleError(LoraError):
    """A sound adapter file that does not fit this base model; `.problems` has every mismatch."""

    code = ErrorCode.LORA_INCOMPATIBLE

    def __init__(self, message: str, *, problems: tuple[str, ...] = ()) -> None:
        """Keep the mismatches one by one beside the joined message."""
        super().__init__(message)
        self.problems = problems


class InvalidAdapterFileError(LoraError, ValueError):
    """A damaged or malformed adapter file; `.problems` has everything that is wrong with it."""

    code = ErrorCode.INVALID_ADAPTER_FILE

    def __init__(self, message: str, *, problems: tuple[str, ...] = ()) -> None:
        """Keep the defects one by one beside the joined message."""
        super().__init__(message)
        self.problems = problems


class InvalidScaleError(LlamafuError, ValueError):
    """A scale that is NaN, infinite or outside the object's `scale_range`."""

    code = ErrorCode.INVALID_SCALE


class ClosedError(LlamafuError):
    """An object used after its `close()`, or after its owner's."""

    code = ErrorCode.CLOSED


class ContextOverflowError(LlamafuError, ValueError):
    """More tokens than the context holds; the message gives both numbers."""

    code = ErrorCode.CONTEXT_OVERFLOW


class EmptyPromptError(LlamafuError, ValueError):
    """A prompt without any token: there is nothing to continue."""

    code = ErrorCode.INVALID_PARAM


class NoTokenLeftError(LlamafuError, ValueError):
    """A request's own logit bias or logits processor leaves no token to choose, or makes a logit that is no number."""

    code = ErrorCode.INVALID_PARAM


class TemplateLimitError(LlamafuError):
    """A chat template that runs too long or makes too much; it would do so again."""

    code = ErrorCode.INVALID_PARAM


class QueueFullError(LlamafuError):
    """More requests than the engine queues, or no memory for a text to embed beside those that run; try again later."""

    code = ErrorCode.QUEUE_FULL


class StateFileError(LlamafuError, ValueError):
    """A saved state that is damaged or belongs to another model or adapter set."""

    code = ErrorCode.STATE_FILE_INVALID


class HubError(LlamafuError):
    """A reference to the Hugging Face hub that is none, leads to nothing that can be used, or cannot be fetched."""

    code = ErrorCode.HUB_FAILED
