"""Folders of results: checked before anything runs, and there only when they are whole."""
