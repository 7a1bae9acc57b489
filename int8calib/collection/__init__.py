"""Batches through a network, several at a time, to the statistics of its blobs."""
