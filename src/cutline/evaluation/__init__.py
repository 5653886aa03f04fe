"""Evaluation: how good captions are, measured against others that are taken for true."""
