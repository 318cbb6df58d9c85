"""A report counted again, replayed and signed."""
