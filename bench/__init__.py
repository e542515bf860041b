"""The referee: one harness for multimodal fusion methods."""
