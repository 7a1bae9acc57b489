"""A Caffe network, run in numpy: the only place that knows Caffe."""
