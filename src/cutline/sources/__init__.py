"""Plug-ins that read other people's formats."""
