"""The program around the tasks."""
