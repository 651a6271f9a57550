"""trunkline: an LLM routing gateway for model servers you run yourself."""

from gateway.core import old_paths

__version__ = "0.1.0"

old_paths.install()
