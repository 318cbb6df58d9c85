"""What users bring: a model folder, a folder of the guide, files under their own names; looked at and put in place."""
