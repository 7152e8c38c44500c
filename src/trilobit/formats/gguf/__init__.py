"""GGUF, the files of llama.cpp and its relatives: read strictly, written whole."""
