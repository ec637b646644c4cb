"""From records to numbers, tables, figures: comparison, statistics, Markdown, pictures."""
