"""Models that say what a test wants them to say, in an engine or a `Llamafu`."""

from contextlib import contextmanager

from llamafu.generation.sampling import ENDED


@contextmanager
def saying(monkeypatch, *texts):
    """Let every generation say the next of `texts`, then end; the last one is said again and again."""
    pending = list(texts)

    class TokenSampler:
        is_complete = False
        seed = 0

        def __init__(self, model, _options, _prompt, *_):
            text = pending.pop(0) if len(pending) > 1 else pending[0]
            self.left = model.tokenize(text, add_special=False, parse_special=True)

        def pick(self, *_):
            return (self.left.pop(0) if self.left else ENDED), None

        def close(self):
            pass

    with monkeypatch.context() as patch:
        for module in ("llamafu.engine.sequence_pool", "llamafu.model.decode_loop"):
            patch.setattr(f"{module}.TokenSampler", TokenSampler)
        yield
