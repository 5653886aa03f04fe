"""Tags and captions become one text."""
