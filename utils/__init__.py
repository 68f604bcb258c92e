"""What several parts need and what knows nothing of ours: files written whole, text, figures, one-line errors."""
