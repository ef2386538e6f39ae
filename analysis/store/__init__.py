"""Result folders: checked before anything runs, and visible only once they are complete."""
