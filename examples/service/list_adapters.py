"""List every adapter that a server has. Listing all of them takes an admin key."""

import os
from datetime import UTC, datetime

from llamafu.client import TabbyClient

URL = os.environ.get("EXAMPLE_URL", "http://localhost:8080")
ADMIN_KEY = os.environ.get("EXAMPLE_ADMIN_KEY", "my-admin-key")

with TabbyClient(URL, admin_key=ADMIN_KEY) as client:
    loras = client.lora.list()

print(f"Found {len(loras.data)} available LoRA adapters:")
for number, lora in enumerate(loras.data, 1):
    print(f"{number}. {lora.id} (owned by: {lora.owned_by})")
    print(f"   Created: {datetime.fromtimestamp(lora.created, UTC).isoformat()}")
