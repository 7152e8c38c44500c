"""Pre-training from text: recipe, data, schedule, and the run itself (torch, transformers)."""
