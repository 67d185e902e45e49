"""The demo: a drawn robot arm and its demonstrations."""
