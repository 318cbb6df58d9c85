"""Data sets: their check, token counts and input bins."""
