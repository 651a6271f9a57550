"""Anthropic's messages and a chat, in both directions."""
