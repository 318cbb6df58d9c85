"""Running a compiled model, and counting its predictions."""
