"""Engines that answer conversations: a model in this process, or one behind an OpenAI-compatible server."""
