"""What would run, as pure data: profiles, cases, steps."""
