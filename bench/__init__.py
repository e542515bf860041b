"""The referee: one harness for multimodal fusion methods."""

__version__ = "0.1.0"
