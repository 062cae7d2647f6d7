"""What people read: one set of rows, rendered for the terminal, as Markdown and as a page; figures of runs and predictions."""
