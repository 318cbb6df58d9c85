"""Two reports side by side: what `invoke diff` says."""
