"""What each family of tasks does, one file per family."""
