"""Run folders in; Markdown, CSV and curves out."""
