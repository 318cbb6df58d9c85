"""Running a compiled model, and counting what it says."""
