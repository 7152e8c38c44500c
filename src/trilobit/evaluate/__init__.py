"""How good a model is: the perplexity of texts, and the tasks of the papers' tables."""
