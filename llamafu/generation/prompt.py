"""Prompts: checks of one and of the model that is to answer it, and the blocks in which its KV memory is reused."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llamafu.errors import EmptyPromptError, UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llamafu._native.context import Context
    from llamafu._native.model import Model


PREFIX_BLOCK = 64
"""Tokens that are computed, kept and reused together: enough to keep prefill fast, few enough to lose little of a prefix."""


def check_prompt(prompt: Sequence[int], model: Model) -> None:
    """Raise `EmptyPromptError` for a prompt without tokens: an answer has to follow something."""
    if not prompt:
        why = "" if model.adds_bos else ", and this model's vocabulary puts none before it (no BOS)"
        message = f"the prompt is empty: it has no tokens{why}; give a text or at least one token id"
        raise EmptyPromptError(message)


def demand_continuing(context: Context) -> None:
    """Raise `UnsupportedError` for a model that cannot continue a text (an encoder)."""
    if not context.continues:
        message = (
            "this model cannot answer: it reads a text as a whole and makes vectors of it (an encoder); use embed, or open a "
            "model that completes texts"
        )
        raise UnsupportedError(message)
