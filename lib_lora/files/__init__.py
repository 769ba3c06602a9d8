"""Files: read and written without trust, named by the keys room."""
