"""Results of the earlier stages come in; a page that explains them goes out."""
