"""Reports on a run: pictures, charts, model cards, pages, tables and JSON files."""
