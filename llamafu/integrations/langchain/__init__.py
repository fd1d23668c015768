"""LangChain's chat model and embeddings over an `Engine` or a `Llamafu` of this process. It needs the extra `langchain`."""

import importlib.util

if importlib.util.find_spec("langchain_core") is None:
    _message = "llamafu.integrations.langchain needs langchain-core; install it: pip install 'llamafu[langchain]'"
    raise ModuleNotFoundError(_message, name="langchain_core")

from llamafu.integrations.langchain.chat_model import ChatLlamafu
from llamafu.integrations.langchain.embeddings import LlamafuEmbeddings

__all__ = ["ChatLlamafu", "LlamafuEmbeddings"]
