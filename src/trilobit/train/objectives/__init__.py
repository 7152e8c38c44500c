"""What is learned: the model, its data and its loss, for each kind of recipe."""
