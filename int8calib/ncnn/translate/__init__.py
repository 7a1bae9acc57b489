"""Translate an ncnn model into a network of the numpy engine, and its weights back."""
