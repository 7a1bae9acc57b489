"""ONNX models: which of their layers ncnn can run in INT8."""
