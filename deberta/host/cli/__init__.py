"""The tasks' options and bodies."""
