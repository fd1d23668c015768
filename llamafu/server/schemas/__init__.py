"""Bodies of requests and answers: their fields, and OpenAPI's description of them."""
