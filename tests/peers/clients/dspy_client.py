"""DSPy: a signature with a nested model, by its JSON adapter, which asks by schema where a provider is said to support that."""

import dspy
from common import KEY, TASK, URL, Voyage, report
from dspy.lm15 import AccessPolicy, ModelSupport, OpenAIChatCompat, ProviderDefinition, register_provider

access = AccessPolicy(provider="llamafu", env_keys=("LLAMAFU_API_KEY",), base_url=URL)
register_provider(ProviderDefinition.chat(access, compat=OpenAIChatCompat()), supports=ModelSupport(response_schema=True))


class Describe(dspy.Signature):
    """Describe the voyage."""

    task: str = dspy.InputField()
    voyage: Voyage = dspy.OutputField()


def model(name):
    return dspy.LM(f"llamafu/{name}", api_key=KEY, temperature=0, max_tokens=200, cache=False, num_retries=0)


with dspy.context(lm=model("smol"), adapter=dspy.JSONAdapter()):
    voyage = dspy.Predict(Describe)(task=TASK).voyage
said = model("pirate")("What is the capital of Germany?", max_tokens=12)[0]
report(structured=voyage.model_dump(), said=said if isinstance(said, str) else said["text"])
