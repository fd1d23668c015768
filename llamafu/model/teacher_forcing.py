"""What a model would say next at each place of a text that it is made to say (teacher forcing)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from llamafu.errors import ContextOverflowError, DecodeError
from llamafu.generation.prompt import demand_continuing
from llamafu.lora.activation import activation, states_of
from llamafu.model.prefix_cache import plan

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np

    from llamafu.lora.active_set import LoraSet
    from llamafu.lora.scales import State
    from llamafu.model.decode_loop import Desk


def forced_logits(
    desk: Desk, prompt: Sequence[int], said: Sequence[int], lora: LoraSet
) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Return the logits after `prompt` and after each token of `said`, shape [1 + len(said), n_vocab].

    The adapters act as in a generation that has the prompt and then chooses these tokens.
    """
    import numpy as np

    context, cache = desk.instance.context, desk.cache
    demand_continuing(context)
    length = len(prompt) + len(said)
    if not prompt or length > context.longest:
        message = (
            f"the prompt has {len(prompt)} tokens and its continuation {len(said)}, but the prompt needs one at least, and "
            f"the context holds {context.capacity}; shorten them or open the model with a larger n_ctx"
        )
        raise ContextOverflowError(message)
    starts = {a: activation(prompt, a.info.invocation_tokens) for a in lora.first}
    first = plan(prompt, states_of(lora, starts, len(prompt)), context.n_batch)
    rest = (
        plan(said, [_state_at(lora, starts, len(prompt), step) for step in range(1, len(said) + 1)], context.n_batch)
        if said
        else []
    )

    def enter(state: State) -> None:
        lora.enter(context, state)

    cache.feed(first, enter, lambda: False)
    rows = np.empty((1 + len(said), desk.instance.model.n_vocab), dtype=np.float32)
    rows[0] = context.logits()
    filled = 1
    for segment in rest:
        cache.append(segment, enter, all_logits=True)
        for i in range(len(segment.tokens)):
            rows[filled + i] = context.logits(i)
        filled += len(segment.tokens)
    if not np.isfinite(rows).all():
        place = int(np.flatnonzero(~np.isfinite(rows).all(axis=1))[0])
        message = f"the model's logits are not finite at place {place} of the continuation; an adapter's weights may overflow"
        raise DecodeError(message)
    return rows


def _state_at(lora: LoraSet, starts: dict[Any, int], prompt_length: int, step: int) -> State:
    return lora.state({a: scale for a, scale in lora.scales(step).items() if starts[a] <= prompt_length})
