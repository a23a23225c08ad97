"""omni over HTTP: any diffusers pipeline behind an OpenAI-compatible API, with a web page."""

__version__ = "0.1.0"
