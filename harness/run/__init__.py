"""One cell: its inputs, fine-tuning and scoring."""
