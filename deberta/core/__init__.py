"""The vocabulary that host and stages share: contract, paths, records, files."""
