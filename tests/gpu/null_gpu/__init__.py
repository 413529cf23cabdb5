"""The null GPU: stub CUDA libraries that compute nothing, for an unchanged TensorFlow."""
