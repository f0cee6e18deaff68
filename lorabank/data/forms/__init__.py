"""What the cells of a row mean: labelled texts, prompts and completions, conversations."""
