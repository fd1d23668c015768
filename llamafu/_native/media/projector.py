"""A projector: what turns images and sounds into the rows of embeddings that one model reads in place of tokens."""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llamafu._native.checks import create, explain, not_null
from llamafu.errors import ClosedError, ModelLoadError, MultimodalError

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from llamafu._native.media.library import MediaLibrary
    from llamafu._native.model import Model

MARKER = b"<__media__>"
"""What stands for a medium in the text that libmtmd is given; that text is never a user's."""
_TEXT = 0
_IMAGE = 1
_SHORTEST = 0.05
"""Seconds of sound: libmtmd ends the process on an empty one."""
_NO_FOLDER = b"/nonexistent"
"""Where ffmpeg is looked for: what is no image would be given to it as a video, and it is a large program."""
_SECTIONS = 4
"""Positions that one row has under M-RoPE: in time, down, across, and one that nothing uses yet."""


@dataclass(frozen=True, slots=True, eq=False)
class MediaRows:
    """The embeddings of one image, tile or stretch of sound, and where they stand.

    - `embeddings`: float32, shape [rows, n_embd].
    - `offsets`, `slopes`: int32, shape [sections, rows]: a row's positions are its offsets, and its slopes times the position
      of the first row. There is one section, or four under M-RoPE, where all rows of an image share a position in time.
    - `n_pos`: positions that they take together: what follows stands so many after the first row.
    - `causal`: whether a row sees only the rows before it; else all rows see each other, and are decoded in one call.
    """

    embeddings: NDArray[np.float32]
    offsets: NDArray[np.int32]
    slopes: NDArray[np.int32]
    n_pos: int
    causal: bool

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.embeddings)

    def positions(self, first: int, start: int, end: int) -> NDArray[np.int32]:
        """Return the positions of the rows from `start` to `end`, shape [sections, rows], where row 0 stands at `first`."""
        import numpy as np

        return self.offsets[:, start:end] + self.slopes[:, start:end] * np.int32(first)


class Projector:
    """Owns an `mtmd_context`. Any thread: calls take turns. It has to be closed before its model."""

    def __init__(self, media: MediaLibrary, path: Path, model: Model, *, n_threads: int, gpu: bool) -> None:
        self._media = media
        self.path = path
        self.model = model
        self._lock = threading.Lock()
        ffi, lib = media.ffi, media.lib
        params = lib.mtmd_context_params_default()
        params.use_gpu, params.print_timings, params.n_threads = gpu, False, n_threads
        params.image_marker = ffi.NULL
        marker = ffi.new("char[]", MARKER)
        params.media_marker = marker
        if "warmup" in media.fields:
            params.warmup = False
        made: list[Any] = []
        create(made, lib.mtmd_init_from_file, os.fsencode(path), media.address(model.pointer), params)
        if made[0] == ffi.NULL:
            message = f"the projector {path} does not load; give the mmproj file that was made for {model.path.name}"
            raise ModelLoadError(explain(media.library, message))
        media.library.logs.forget_errors()
        self._pointer = made[0]
        self.sees = bool(lib.mtmd_support_vision(self._pointer))
        self.hears = bool(lib.mtmd_support_audio(self._pointer))
        self.sample_rate = int(lib.mtmd_get_audio_sample_rate(self._pointer)) if self.hears else 0
        self._sections = _SECTIONS if lib.mtmd_decode_use_mrope(self._pointer) else 1
        if self._sections > 1 and not media.places_images:
            self.close()
            message = (
                f"{path} needs M-RoPE positions, which this build's libmtmd ({media.family}) does not tell; use a newer one"
            )
            raise MultimodalError(message)

    @property
    def pointer(self) -> Any:
        """The `mtmd_context *`; `ClosedError` once closed."""
        if self._pointer is None:
            message = "this object is closed; open a new one"
            raise ClosedError(message)
        return self._pointer

    def close(self) -> None:
        """Free the projector. Waits for what is being encoded. Idempotent."""
        with self._lock:
            pointer, self._pointer = self._pointer, None
            if pointer is not None:
                self._media.lib.mtmd_free(pointer)

    def decoded(self, content: bytes) -> NDArray[np.uint8]:
        """Return the pixels of an image file, shape [height, width, 3]; `MultimodalError` for one that cannot be read."""
        bitmap = self._bitmap_of_file(content)
        try:
            return self._pixels(bitmap)
        finally:
            self._media.lib.mtmd_bitmap_free(bitmap)

    def encode_image(self, pixels: NDArray[np.uint8]) -> list[list[int] | MediaRows]:
        """Return what stands for an image: tokens, such as marks around it, and rows. `pixels`: [height, width, 3]."""
        import numpy as np

        height, width, _ = pixels.shape
        data = np.ascontiguousarray(pixels)
        pointer = self._media.ffi.from_buffer("unsigned char[]", data)
        return self._encode(self._media.lib.mtmd_bitmap_init(width, height, pointer))

    def encode_sound_file(self, content: bytes) -> list[list[int] | MediaRows]:
        """Return what stands for the sound of a WAV, FLAC or MP3 file, as for an image."""
        bitmap = self._bitmap_of_file(content)
        if self._media.lib.mtmd_bitmap_get_n_bytes(bitmap) < _SHORTEST * self.sample_rate * 4:
            self._media.lib.mtmd_bitmap_free(bitmap)
            message = f"the sound is shorter than {_SHORTEST} seconds, or damaged; give a longer one"
            raise MultimodalError(message)
        return self._encode(bitmap)

    def _bitmap_of_file(self, content: bytes) -> Any:
        """Let libmtmd decode a file; what it takes for a video is refused."""
        ffi, lib = self._media.ffi, self._media.lib
        options = ffi.new("struct mtmd_helper_init_opt *")
        nowhere = ffi.new("char[]", _NO_FOLDER)
        options.ffmpeg_bin_dir = nowhere
        with self._media.library.logs.quiet():  # what it says is about ffmpeg
            found = lib.mtmd_helper_bitmap_init_from_buf(self.pointer, content, len(content), False, options[0])  # noqa: FBT003
        if found.bitmap == ffi.NULL:
            message = "the data cannot be decoded: it is damaged, or not what its first bytes say"
            raise MultimodalError(message)
        if self._media.family >= "mtmd04" and found.video_ctx != ffi.NULL:
            lib.mtmd_bitmap_free(found.bitmap)
            lib.mtmd_helper_video_free(found.video_ctx)
            message = "this is a video or damaged; give an image or a sound"
            raise MultimodalError(message)
        return found.bitmap

    def _pixels(self, bitmap: Any) -> NDArray[np.uint8]:
        import numpy as np

        ffi, lib = self._media.ffi, self._media.lib
        shape = lib.mtmd_bitmap_get_ny(bitmap), lib.mtmd_bitmap_get_nx(bitmap), 3
        data = ffi.buffer(lib.mtmd_bitmap_get_data(bitmap), lib.mtmd_bitmap_get_n_bytes(bitmap))
        return np.frombuffer(data, np.uint8).reshape(shape).copy()

    def _encode(self, bitmap: Any) -> list[list[int] | MediaRows]:
        """Divide a bitmap, which is freed, into chunks, and encode those that are no text."""
        media = self._media
        not_null(media.library, media.library.ffi.NULL if bitmap == media.ffi.NULL else bitmap, MultimodalError, "no bitmap")
        ffi, lib = media.ffi, media.lib
        chunks = lib.mtmd_input_chunks_init()
        try:
            with self._lock:
                text = ffi.new("struct mtmd_input_text *")
                words = ffi.new("char[]", MARKER)
                text.text, text.add_special, text.parse_special = words, False, True
                if media.states_length:
                    text.text_len = len(MARKER)
                code = lib.mtmd_tokenize(self.pointer, chunks, text, ffi.new("void *[]", [bitmap]), 1)
                if code != 0:
                    raise MultimodalError(explain(media.library, f"the projector cannot divide it (libmtmd returned {code})"))
                media.library.logs.forget_errors()
                count = lib.mtmd_input_chunks_size(chunks)
                return [self._read(lib.mtmd_input_chunks_get(chunks, index)) for index in range(count)]
        finally:
            lib.mtmd_input_chunks_free(chunks)
            lib.mtmd_bitmap_free(bitmap)

    def _read(self, chunk: Any) -> list[int] | MediaRows:
        """Return the tokens of a text chunk; encode another one."""
        import numpy as np

        media = self._media
        ffi, lib = media.ffi, media.lib
        kind = lib.mtmd_input_chunk_get_type(chunk)
        if kind == _TEXT:
            length = ffi.new("size_t *")
            tokens = lib.mtmd_input_chunk_get_tokens_text(chunk, length)
            return list(ffi.unpack(tokens, length[0])) if length[0] else []
        code = lib.mtmd_encode_chunk(self.pointer, chunk)
        if code != 0:
            raise MultimodalError(explain(media.library, f"the projector cannot encode it (libmtmd returned {code})"))
        media.library.logs.forget_errors()
        rows = int(lib.mtmd_input_chunk_get_n_tokens(chunk))
        width = self.model.n_embd_inp
        values = np.frombuffer(ffi.buffer(lib.mtmd_get_output_embd(self.pointer), rows * width * 4), np.float32)
        embeddings = values.reshape(rows, width).copy()
        if not np.isfinite(embeddings).all():
            message = "the projector makes numbers of it that are not finite; give another one"
            raise MultimodalError(message)
        at_zero, at_one = (self._positions(chunk, kind, rows, first) for first in (0, 1))
        return MediaRows(
            embeddings=embeddings,
            offsets=at_zero,
            slopes=at_one - at_zero,
            n_pos=int(lib.mtmd_input_chunk_get_n_pos(chunk)),
            causal=not lib.mtmd_decode_use_non_causal(self.pointer, chunk),
        )

    def _positions(self, chunk: Any, kind: int, rows: int, first: int) -> NDArray[np.int32]:
        """Return the positions of a chunk's rows where the first one stands at `first`."""
        import numpy as np

        line = np.arange(first, first + rows, dtype=np.int32)
        if self._sections == 1:
            return line[np.newaxis]
        if kind != _IMAGE:
            return np.stack([line, line, line, np.zeros_like(line)])
        lib = self._media.lib
        image = lib.mtmd_input_chunk_get_tokens_image(chunk)
        places = [lib.mtmd_image_tokens_get_decoder_pos(image, first, index) for index in range(rows)]
        return np.array([[p.t for p in places], [p.y for p in places], [p.x for p in places], [p.z for p in places]], np.int32)
