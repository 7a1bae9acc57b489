"""A network that is not running yet: files come in, a frozen graph with weights goes out."""
