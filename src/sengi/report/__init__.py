"""Run folders as pages, Markdown and pictures; nothing here trains or scores."""
