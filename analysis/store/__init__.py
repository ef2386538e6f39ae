"""Result folders: checked before anything runs, and complete once they are visible, or resumable until they are."""
