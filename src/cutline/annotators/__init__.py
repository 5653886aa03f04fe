"""Plug-ins that look at a picture and write a row about it."""
