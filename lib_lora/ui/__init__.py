"""The page: gradio only."""
