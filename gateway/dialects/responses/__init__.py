"""OpenAI's responses and a chat, in both directions."""
