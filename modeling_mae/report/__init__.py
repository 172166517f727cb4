"""What a person looks at after a run: pictures, charts, model cards, tables and JSON files."""
