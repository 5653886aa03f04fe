"""Cutline gives every picture in a collection its words, keeps them, and turns them into what a trainer will see."""

__version__ = "0.1.0"
