"""The report for people, as a page and as Markdown: what it shows, and how it looks."""
