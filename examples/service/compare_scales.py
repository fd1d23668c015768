"""Ask the same at several scales at once: each request names its own mix, so nothing has to be loaded."""

import asyncio
import os

from llamafu.client import AsyncTabbyClient

URL = os.environ.get("EXAMPLE_URL", "http://localhost:8080")
API_KEY = os.environ.get("EXAMPLE_API_KEY", "my-api-key")
QUESTION = [{"role": "user", "content": "What is the capital of Germany?"}]
SCALES = (0.0, 0.2, 0.5, 0.8)


async def compare():
    """Return an answer for each scale; they share the server's batches."""
    async with AsyncTabbyClient(URL, api_key=API_KEY) as client:
        asked = (client.chat.create(QUESTION, lora={"pirate": scale}, temperature=0, max_tokens=60) for scale in SCALES)
        return await asyncio.gather(*asked)


for scale, answer in zip(SCALES, asyncio.run(compare()), strict=True):
    print(f"{scale:.1f}  {answer.text}")
