"""A network and images come in; a better table, and if wanted a better model, goes out."""
