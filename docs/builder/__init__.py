"""What the site is made of beside its files: root documents, notebooks, tables, the API."""
