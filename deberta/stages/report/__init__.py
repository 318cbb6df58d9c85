"""The report: statistics, gates, Markdown and HTML."""
