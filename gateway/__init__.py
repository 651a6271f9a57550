"""trunkline: an LLM routing gateway for model servers you run yourself."""

__version__ = "0.1.0"
