"""Downloads, checked by SHA-256."""
