"""A Caffe network as an ncnn model: the only place where the two meet."""
