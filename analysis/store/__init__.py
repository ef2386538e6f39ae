"""Result folders that either appear only once they are complete, or can be resumed until they are complete."""
