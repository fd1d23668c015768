"""Models that say what a test wants them to say, in an engine or a `Llamafu`."""

from contextlib import contextmanager

from llamafu.generation.sampling import ENDED


@contextmanager
def saying(monkeypatch, text):
    """Let every generation say `text`, then end."""

    class TokenSampler:
        is_complete = False
        seed = 0

        def __init__(self, model, _options, _prompt, _constraint):
            self.left = model.tokenize(text, add_special=False, parse_special=True)

        def pick(self, *_):
            return (self.left.pop(0) if self.left else ENDED), None

        def close(self):
            pass

    with monkeypatch.context() as patch:
        for module in ("llamafu.engine.sequence_pool", "llamafu.model.decode_loop"):
            patch.setattr(f"{module}.TokenSampler", TokenSampler)
        yield
