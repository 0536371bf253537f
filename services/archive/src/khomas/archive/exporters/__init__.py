"""Plug-ins that turn a release into files of other formats."""
