"""Teacher forcing: the logits of a model at each place of a continuation that is given."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from llamafu.errors import ContextOverflowError, DecodeError
from llamafu.generation.media.prompt import check_spans, counted
from llamafu.generation.prompt import demand_continuing
from llamafu.lora.activation import Activation
from llamafu.model.prefix_cache import plan
from llamafu.model.session import state_switch

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np

    from llamafu.generation.media.prompt import MediaSpan
    from llamafu.lora.active_set import LoraSet
    from llamafu.lora.registry import LoadedAdapter
    from llamafu.model.session import Session


def forced_logits(
    session: Session,
    prompt: Sequence[int],
    forced_tokens: Sequence[int],
    lora: LoraSet[LoadedAdapter],
    spans: Sequence[MediaSpan] = (),
) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Return the logits after `prompt` and after each of `forced_tokens`, shape [1 + len(forced_tokens), n_vocab].

    The adapters act as in a generation that has the prompt, with media at `spans`, and then chooses these tokens.
    """
    import numpy as np

    context, cache = session.instance.context, session.cache
    demand_continuing(context)
    check_spans(spans, context)
    length = len(prompt) + len(forced_tokens)
    if not prompt or length > context.longest:
        message = (
            f"the prompt has {counted(len(prompt), spans)} and its continuation {len(forced_tokens)}, but the prompt needs one "
            f"at least, and the context holds {context.capacity}; shorten them or open the model with a larger n_ctx"
        )
        raise ContextOverflowError(message)
    switch, activation = state_switch(context, lora), Activation(lora, prompt)
    segments = plan(prompt, activation.prompt_states(), context.n_batch, spans)
    states = [activation.answer_state(step) for step in range(1, len(forced_tokens) + 1)]
    forced_segments = plan(forced_tokens, states, context.n_batch) if forced_tokens else []
    cache.feed(segments, switch, lambda: False)
    rows = np.empty((1 + len(forced_tokens), session.instance.model.n_vocab), dtype=np.float32)
    rows[0] = context.logits()
    filled = 1
    for segment in forced_segments:
        cache.append(segment, switch, all_logits=True)
        for i in range(len(segment.tokens)):
            rows[filled + i] = context.logits(i)
        filled += len(segment.tokens)
    if not np.isfinite(rows).all():
        place = int(np.flatnonzero(~np.isfinite(rows).all(axis=1))[0])
        message = f"the model's logits are not finite at place {place} of the continuation; an adapter's weights may overflow"
        raise DecodeError(message)
    return rows
