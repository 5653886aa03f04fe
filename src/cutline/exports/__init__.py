"""Plug-ins that write other people's formats."""
