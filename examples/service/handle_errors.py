"""Tell the ways apart in which a request can be refused."""

import os

from llamafu.client import APIError, LoraLoadRequest, TabbyClient

URL = os.environ.get("EXAMPLE_URL", "http://localhost:8080")
ADMIN_KEY = os.environ.get("EXAMPLE_ADMIN_KEY", "my-admin-key")
API_KEY = os.environ.get("EXAMPLE_API_KEY", "my-api-key")


def load(name, scaling, key):
    """Try to load an adapter, and say what came of it."""
    with TabbyClient(URL, api_key=key) as client:
        try:
            client.lora.load(LoraLoadRequest.of({name: scaling}))
        except APIError as error:
            match error.code:
                case "permission_error":
                    print("You need admin permissions to manage LoRA adapters")
                case "not_found":
                    print("One or more of the requested LoRA adapters were not found")
                case "invalid_request":
                    print(f"Invalid request parameters: {error}")
                case "authentication_error":
                    print("This key is not known here")
                case _:
                    print(f"API Error: {error}")
        else:
            print(f"Loaded {name}")
            client.lora.unload()


load("pirate", 0.8, key=API_KEY)
load("parrot", 0.8, key=ADMIN_KEY)
load("pirate", 8.0, key=ADMIN_KEY)
load("pirate", 0.8, key="a key that nobody gave".replace(" ", "-"))
load("pirate", 0.8, key=ADMIN_KEY)
