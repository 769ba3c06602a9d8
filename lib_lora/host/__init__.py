"""The sole importer of the webui's own modules."""
