"""Keep results: published once, sealed, content-addressed, shared by studies."""
