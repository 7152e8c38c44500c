"""Our file: a model packed for inference, one safetensors file with everything in it."""
