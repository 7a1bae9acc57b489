"""A seeded mutation test: damaged files of every kind end in a result or in our own error."""
