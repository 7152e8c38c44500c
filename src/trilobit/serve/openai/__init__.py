"""OpenAI's API: bodies and answers of its routes, translated."""
