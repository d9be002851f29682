"""The report: run directories in, one self-contained page, its Markdown twin and its figures out. No torch here."""
