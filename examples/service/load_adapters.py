"""Load two adapters with a scale each; they replace what was active, in one step."""

import os

from llamafu.client import LoraLoadInfo, LoraLoadRequest, TabbyClient

URL = os.environ.get("EXAMPLE_URL", "http://localhost:8080")
ADMIN_KEY = os.environ.get("EXAMPLE_ADMIN_KEY", "my-admin-key")

request = LoraLoadRequest(
    loras=(
        LoraLoadInfo("pirate", scaling=0.8),  # a strong influence
        LoraLoadInfo("shout", scaling=0.5),  # a moderate one
    ),
    skip_queue=False,  # requests that wait already keep the set of their arrival
)

with TabbyClient(URL, admin_key=ADMIN_KEY) as client:
    print("Loading LoRA adapters...")
    response = client.lora.load(request)
    if response.success:
        print(f"Successfully loaded adapters: {', '.join(response.success)}")
    if response.failure:
        print(f"Failed to load adapters: {', '.join(response.failure)}")
    active = client.lora.get_active()

print(f"Currently active LoRA adapters ({len(active.data)}):")
for number, lora in enumerate(active.data, 1):
    print(f"{number}. {lora.id} (scaling: {lora.scaling:.2f})")
