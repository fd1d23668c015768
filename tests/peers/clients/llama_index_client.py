"""LlamaIndex's package for servers like OpenAI's: chats, streams, a tool that runs, structured output, embeddings."""

from common import CAPITAL, KEY, QUESTION, TASK, URL, Voyage, ran, report, weather
from llama_index.core.llms import ChatMessage
from llama_index.core.prompts import PromptTemplate
from llama_index.core.tools import FunctionTool
from llama_index.embeddings.openai_like import OpenAILikeEmbedding
from llama_index.llms.openai_like import OpenAILike


def model(name, **options):
    given = {"max_tokens": 200, "is_function_calling_model": True, **options}
    return OpenAILike(
        api_base=URL, api_key=KEY, model=name, temperature=0, is_chat_model=True, context_window=8192, max_retries=0, **given
    )


asked = [ChatMessage(role="user", content=CAPITAL)]
embedding = OpenAILikeEmbedding(api_base=URL, api_key=KEY, model_name="pirate")
report(
    said={name: model(name, max_tokens=12).chat(asked).message.content for name in ("smol", "pirate")},
    streamed="".join(part.delta or "" for part in model("pirate", max_tokens=12).stream_chat(asked)),
    completed=model("pirate").complete(CAPITAL).text,
    tool=model("caller").predict_and_call([FunctionTool.from_defaults(weather)], QUESTION).response,
    ran=ran,
    structured={
        "tools": model("smol").structured_predict(Voyage, PromptTemplate(TASK)).model_dump(),
        "json_schema": model("smol", should_use_structured_outputs=True)
        .structured_predict(Voyage, PromptTemplate(TASK))
        .model_dump(),
    },
    embedded=[len(vector) for vector in embedding.get_text_embedding_batch(["a ship on the sea", "tax law"])],
)
