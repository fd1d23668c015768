"""LangChain's agent over a model that was trained to call tools: nothing holds its calls."""

from common import KEY, QUESTION, URL, ran, report, weather
from langchain.agents import create_agent
from langchain_openai import ChatOpenAI

model = ChatOpenAI(base_url=URL, api_key=KEY, model="caller", temperature=0, timeout=100, max_retries=0)
messages = create_agent(model, tools=[weather]).invoke({"messages": [("user", QUESTION)]})["messages"]
report(ran=ran, kinds=[message.type for message in messages], answer=messages[-1].text)
